/**
 * A route of the worker's own: what it takes, what it does, what load it is (wire section 5).
 */
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import type * as Schema from "effect/Schema"
import { MetricsReporter } from "../metrics/MetricsReporter.ts"
import type { AuthData } from "../protocol/AuthData.ts"
import { HandlerRequest } from "../protocol/SessionApi.ts"
import { Sessions } from "../session/Session.ts"
import { body, SessionGone } from "./Refusals.ts"
import { RequestAuth } from "./RequestAuth.ts"

/** A route, ready to be served. */
export type Handler = ReturnType<typeof make>

/**
 * Serves `POST {route}` with an effect in this process; the answer is `{"result": …}`.
 *
 * `workload` is the load that a request is, in workload units. A request that names its session must bring that session's
 * `auth_data`, and gives it its whole lifetime anew.
 */
export const make = <P, A extends Schema.Json>(options: {
  readonly route: `/${string}`
  readonly payload: Schema.Codec<P, unknown>
  readonly workload: (payload: P) => number
  readonly run: (payload: P) => Effect.Effect<A>
}) => {
  const read = body(HandlerRequest(options.payload))
  return HttpRouter.use(
    Effect.fnUntraced(function* (router) {
      const auth = yield* RequestAuth
      const sessions = yield* Sessions
      const reporter = yield* MetricsReporter

      const bind = Effect.fnUntraced(function* (id: string, authData: AuthData) {
        const session = yield* sessions
          .find(id, authData)
          .pipe(Effect.catchTag("SessionUnknown", () => new SessionGone({ message: "invalid session" })))
        yield* sessions.extend(session)
      })

      yield* router.add(
        "POST",
        options.route,
        Effect.gen(function* () {
          const request = yield* read
          yield* auth.verify(request.auth_data)
          if (request.session_id !== null) yield* bind(request.session_id, request.auth_data)
          yield* reporter.work({
            kind: request.session_id === null ? "request" : "request in session",
            requestIdx: request.auth_data.request_idx,
            workload: options.workload(request.payload)
          })
          return HttpServerResponse.jsonUnsafe({ result: yield* options.run(request.payload) })
        })
      )
    })
  )
}
