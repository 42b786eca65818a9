import { generateKeyPairSync, sign } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as Layer from "effect/Layer"
import * as TestClock from "effect/testing/TestClock"
import { type SignaturePolicy, WorkerConfig } from "../../src/config.ts"
import { signedMessage } from "../../src/protocol/AuthData.ts"
import * as RequestAuth from "../../src/worker/RequestAuth.ts"
import { config } from "./serving.ts"

const url = "https://1.2.3.4:3000"
const keys = generateKeyPairSync("rsa", { modulusLength: 2048 })
const pem = keys.publicKey.export({ type: "spki", format: "pem" }).toString()
const signature = (signed: string, key = keys.privateKey) =>
  sign("RSA-SHA256", Buffer.from(signedMessage(signed)), key).toString("base64")

const testLayer = (signaturePolicy: SignaturePolicy, answer: (attempt: number) => Response = () => new Response(pem)) => {
  let attempts = 0
  const client = HttpClient.make((request) => Effect.sync(() => HttpClientResponse.fromWeb(request, answer(++attempts))))
  return RequestAuth.layer.pipe(
    Layer.provide(Layer.succeed(WorkerConfig, { ...config, url, signaturePolicy })),
    Layer.provide(Layer.succeed(HttpClient.HttpClient, client))
  )
}

const refusal = (auth: { url: string; signature?: string }) =>
  Effect.gen(function* () {
    const { verify } = yield* RequestAuth.RequestAuth
    return (yield* Effect.flip(verify(auth))).check
  })

describe("RequestAuth", () => {
  it.effect("lets a signed request for this worker pass, again and again", () =>
    Effect.gen(function* () {
      const { ready, verify } = yield* RequestAuth.RequestAuth
      yield* ready
      for (let times = 0; times < 3; times++) yield* verify({ url, signature: signature(url) })
      const withPath = `${url}/any/path?q`
      yield* verify({ url: withPath, signature: signature(withPath) })
    }).pipe(Effect.provide(testLayer("require")))
  )

  it.effect("says which check refused", () =>
    Effect.gen(function* () {
      yield* (yield* RequestAuth.RequestAuth).ready
      assert.match(yield* refusal({ url }), /no signature/)
      assert.match(yield* refusal({ url, signature: "" }), /does not match/)
      assert.match(yield* refusal({ url, signature: "not base64 !" }), /does not match/)
      const other = "https://5.6.7.8:3000"
      assert.match(yield* refusal({ url: other, signature: signature(other) }), /not this worker's/)
      assert.match(yield* refusal({ url: "no url", signature: signature("no url") }), /not this worker's/)
      const forger = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey
      assert.match(yield* refusal({ url, signature: signature(url, forger) }), /does not match/)
    }).pipe(Effect.provide(testLayer("require")))
  )

  it.effect("remembers no refusal as a pass, and no pass for another url", () =>
    Effect.gen(function* () {
      const { ready, verify } = yield* RequestAuth.RequestAuth
      yield* ready
      yield* verify({ url, signature: signature(url) })
      assert.match(yield* refusal({ url: `${url}/x`, signature: signature(url) }), /does not match/)
      for (let times = 0; times < 2; times++) assert.match(yield* refusal({ url, signature: "AAAA" }), /does not match/)
    }).pipe(Effect.provide(testLayer("require")))
  )

  it.effect("asks five times for the key, after 1, 2, 4 and 8 s, then says why there is none", () =>
    Effect.gen(function* () {
      const { ready } = yield* RequestAuth.RequestAuth
      const waiting = yield* Effect.forkChild(Effect.flip(ready))
      yield* TestClock.adjust("14999 millis")
      assert.isUndefined(waiting.pollUnsafe())
      assert.match(yield* refusal({ url, signature: signature(url) }), /not fetched yet/)
      yield* TestClock.adjust("1 millis")
      assert.isDefined(waiting.pollUnsafe())
      assert.match(yield* refusal({ url, signature: signature(url) }), /could not be fetched/)
    }).pipe(Effect.provide(testLayer("require", () => new Response("", { status: 500 }))))
  )

  it.effect("takes the key when it comes at last, and nothing else for it", () =>
    Effect.gen(function* () {
      const { ready } = yield* RequestAuth.RequestAuth
      const waiting = yield* Effect.forkChild(ready)
      yield* TestClock.adjust("7 seconds")
      assert.isDefined(waiting.pollUnsafe())
    }).pipe(Effect.provide(testLayer("require", (attempt) => new Response(attempt < 4 ? "<html>" : pem))))
  )

  it.effect("lets pass under warn, and waits for nothing", () =>
    Effect.gen(function* () {
      const { ready, verify } = yield* RequestAuth.RequestAuth
      yield* ready
      yield* verify({ url: "http://else", signature: "forged" })
    }).pipe(Effect.provide(testLayer("warn", () => new Response("", { status: 500 }))))
  )

  it.effect("asks for nothing under off", () =>
    Effect.gen(function* () {
      const { ready, verify } = yield* RequestAuth.RequestAuth
      yield* ready
      yield* verify({ url: "http://else" })
    }).pipe(Effect.provide(testLayer("off", () => assert.fail("fetched a key"))))
  )
})
