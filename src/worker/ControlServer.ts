/**
 * What the user's own queue consumer on the instance speaks to, on loopback (wire sections 2 and 6).
 *
 * It asks for no secret, so it has to know its callers otherwise: a browser on the machine, which any web page can have send
 * requests to loopback, is none of them.
 */

import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Headers from "effect/http/Headers"
import * as HttpRouter from "effect/http/HttpRouter"
import type { ServeError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import { WorkerConfig } from "../config.ts"
import type { Released } from "../protocol/SessionApi.ts"
import { Sessions } from "../session/Session.ts"
import * as Listener from "./Listener.ts"
import { CallerRefused } from "./Refusals.ts"

export class ControlServer extends Context.Service<
  ControlServer,
  {
    /** The consumer is done: closes whatever session is open and says which. */
    readonly release: Effect.Effect<typeof Released.Type>
  }
>()("null-pyworker/ControlServer") {}

const make = Effect.gen(function* () {
  const sessions = yield* Sessions
  return ControlServer.of({
    release: Effect.map(sessions.closeAll("consumer"), (session_ids) =>
      session_ids.length > 0 ? { released: true, session_ids } : { released: false, reason: "no active session" }
    )
  })
})

// What every browser adds to a POST, and a name that is loopback's: a page may have its own name resolve to 127.0.0.1.
const isConsumer = ({ host, origin }: Headers.Headers) =>
  origin === undefined && host !== undefined && /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i.test(host)

const consumersOnly = HttpRouter.middleware(
  (routes) =>
    Effect.gen(function* () {
      const { headers } = yield* HttpServerRequest.HttpServerRequest
      return isConsumer(headers) ? yield* routes : yield* new CallerRefused()
    }),
  { global: true }
)

const routes = Layer.unwrap(
  Effect.gen(function* () {
    const { healthUrl } = yield* WorkerConfig
    const { release } = yield* ControlServer
    const releaseRoute = HttpRouter.add(
      "POST",
      "/release",
      Effect.map(release, (answer) => HttpServerResponse.jsonUnsafe(answer))
    )
    if (Option.isSome(healthUrl)) return Layer.merge(releaseRoute, consumersOnly)
    return Layer.mergeAll(
      releaseRoute,
      consumersOnly,
      HttpRouter.add("GET", "/health", HttpServerResponse.jsonUnsafe({ ok: true }))
    )
  })
)

/** Serves the consumer on `NULL_CONTROL_PORT`; with `/health` where the consumer has no health URL of its own. */
export const layer: Layer.Layer<ControlServer, ServeError, WorkerConfig | Sessions | Listener.Listener> = Layer.unwrap(
  Effect.map(WorkerConfig, ({ controlPort }) => Listener.layer(routes, { port: controlPort, host: Listener.loopback }))
).pipe(Layer.provideMerge(Layer.effect(ControlServer, make)))
