import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as AuthData from "../../src/protocol/AuthData.ts"

describe("signedMessage", () => {
  // The right-hand sides are what Python's json.dumps({"url": url}, indent=4, sort_keys=True) printed.
  it.each([
    ["https://1.2.3.4:30123", '{\n    "url": "https://1.2.3.4:30123"\n}'],
    ['a"b\\c', '{\n    "url": "a\\"b\\\\c"\n}'],
    ["tab\tnl\nnul\u0000del\u007f", '{\n    "url": "tab\\tnl\\nnul\\u0000del\\u007f"\n}'],
    ["http://bücher.example/€/😀", '{\n    "url": "http://b\\u00fccher.example/\\u20ac/\\ud83d\\ude00"\n}']
  ])("is Python's JSON of %j", (url, message) => {
    assert.strictEqual(AuthData.signedMessage(url), message)
  })
})

describe("isSame", () => {
  const same = AuthData.isSame

  it("does not depend on the order of keys, at any depth", () => {
    assert.isTrue(
      same({ url: "u", extra: { a: 1, b: [2, { c: 3, d: 4 }] } }, { extra: { b: [2, { d: 4, c: 3 }], a: 1 }, url: "u" })
    )
  })

  it("tells apart what Python tells apart", () => {
    for (const other of [{ url: "u", cost: "1" }, { url: "u" }, { url: "u", cost: 1, x: null }, { url: "u", cost: [1] }]) {
      assert.isFalse(same({ url: "u", cost: 1 }, other))
    }
    assert.isFalse(same({ x: { a: 1 } }, { x: [["a", 1]] }))
  })

  it.prop("equals itself and no object with another field", [Schema.Record(Schema.String, Schema.Json)], ([auth]) => {
    assert.isTrue(same(auth, JSON.parse(JSON.stringify(auth))))
    assert.isFalse(same(auth, { ...auth, "one more": Object.keys(auth).length }))
  })
})

describe("AuthData", () => {
  const decode = Schema.decodeUnknownSync(AuthData.AuthData)

  it("keeps fields that we do not know", () => {
    const auth = { url: "u", signature: "s", cost: 100, request_idx: 1, reqnum: 2, endpoint: "e", __extra: { deep: [1] } }
    assert.deepStrictEqual(decode(auth), auth)
  })

  it("takes a numeric string for the cost, and the SDK's default where there is none", () => {
    assert.strictEqual(AuthData.workload(decode({ url: "u", cost: "12.5" })), 12.5)
    assert.strictEqual(AuthData.workload(decode({ url: "u" })), 100)
  })

  it.each([{ cost: -1 }, { cost: "much" }, { cost: null }, { request_idx: 1.5 }, { reqnum: "1" }, { url: 7 }, { signature: [] }])(
    "refuses %j",
    (field) => {
      assert.throws(() => decode({ url: "u", ...field }))
    }
  )
})
