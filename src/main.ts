/**
 * The null worker: a worker whose only handler answers pings.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Handler, Launch, Worker } from "./index.ts"
import { JsonObject } from "./protocol/Json.ts"

/** Shows that the client is alive, and so extends its session. It is no load. */
export const ping = Handler.make({
  route: "/ping",
  payload: JsonObject,
  workload: () => 0,
  parallel: true,
  run: () => Effect.succeed({ ok: true })
})

/** Runs the null worker until it is interrupted. */
export const run = Launch.run(Worker.layer({ handlers: [ping] }).pipe(Layer.provide(Worker.layerServices)))
