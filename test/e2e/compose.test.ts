import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { Handler, Worker } from "../../src/index.ts"
import { eventually, freePort, listen, post } from "./harness.ts"

const echo = Handler.make({ route: "/echo", payload: Schema.Json, run: (payload) => Effect.succeed(payload) })

describe("a worker in a program of one's own", () => {
  it("lives by the environment, for as long as its scope, and stops with its last reports", async () => {
    await using autoscaler = await listen()
    const port = await freePort()
    const environment = {
      CONTAINER_ID: "9",
      REPORT_ADDR: autoscaler.url,
      PUBLIC_IPADDR: "127.0.0.1",
      WORKER_PORT: String(port),
      [`VAST_TCP_PORT_${port}`]: String(port),
      WORKER_HTTP_PORT: String(await freePort()),
      NULL_CONTROL_PORT: String(await freePort()),
      UNSECURED: "true"
    }
    const worker = Worker.layerFromEnv({ handlers: [echo] }).pipe(
      Layer.provide([NodeHttpClient.layerNodeHttp, NodeServices.layer]),
      Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: environment })))
    )
    const url = `http://127.0.0.1:${port}`
    const auth_data = { url, request_idx: 4 }
    await Effect.runPromise(
      Effect.promise(async () => {
        await eventually("ready", () => autoscaler.to("/worker_status/").some(({ body }) => body.loadtime > 0))
        assert.deepStrictEqual(await post(`${url}/echo`, { auth_data, payload: { a: 1 } }), {
          status: 200,
          body: { result: { a: 1 } }
        })
        assert.strictEqual((await post(`${url}/session/create`, { auth_data, payload: {} })).status, 201)
      }).pipe(Effect.provide(worker))
    )
    assert.strictEqual(autoscaler.to("/worker_status/").at(-1)?.body.cur_load, 0)
    await post(url, {}).then(
      () => assert.fail("still listens"),
      () => {}
    )
    const refused = Worker.layerFromEnv({ handlers: [echo] }).pipe(
      Layer.provide([NodeHttpClient.layerNodeHttp, NodeServices.layer]),
      Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: {} }))),
      Layer.build,
      Effect.scoped,
      Effect.flip
    )
    assert.deepInclude(await Effect.runPromise(refused), { _tag: "ConfigRefused", variable: "CONTAINER_ID" })
  })
})
