/**
 * The worker's public port: sessions, management, and the handlers' routes (wire sections 2, 4 and 5). Beside it, on loopback
 * and in plain HTTP, `/session/end` for whoever on the instance holds a session.
 */

import { createHash, timingSafeEqual } from "node:crypto"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"
import { CreateSession, type SessionCreated, type SessionEnded, SessionKey, type SessionState } from "../protocol/SessionApi.ts"
import * as OnClose from "../session/OnClose.ts"
import { Sessions } from "../session/Session.ts"
import * as Handler from "./Handler.ts"
import * as JsonRoute from "./JsonRoute.ts"
import * as Listener from "./Listener.ts"
import * as Refusals from "./Refusals.ts"
import { SessionGone, TokenRefused } from "./Refusals.ts"
import { RequestAuth } from "./RequestAuth.ts"
import * as RequestBody from "./RequestBody.ts"

/** The certificate or its key cannot be read. */
export class CertificateUnreadable extends Schema.TaggedError<CertificateUnreadable>()("CertificateUnreadable", {
  message: Schema.String
}) {}

const json = (body: Schema.JsonObject, status = 200): Refusals.Answer => ({ status, body })

const endSession = Effect.map(Sessions, (sessions) =>
  JsonRoute.make(
    "/session/end",
    SessionKey,
    Effect.fnUntraced(function* (key) {
      const session = yield* sessions.find(key.session_id, key.session_auth)
      const closed = yield* sessions.close(session, "client")
      if (!closed) return yield* new SessionGone({ message: "session already closed" })
      return json({ ended: true, removed_session: session.id } satisfies typeof SessionEnded.Type)
    })
  )
)

const sessionRoutes = Effect.gen(function* () {
  const sessions = yield* Sessions
  const auth = yield* RequestAuth
  const { onCloseAllowPrivate } = yield* WorkerConfig

  return [
    JsonRoute.make(
      "/session/create",
      CreateSession,
      Effect.fnUntraced(function* ({ auth_data, payload }) {
        const route = payload.on_close_route
        if (route !== null && !onCloseAllowPrivate && OnClose.isForbidden(route)) yield* forbiddenRoute
        yield* auth.verify(auth_data)
        const { expiration, id } = yield* sessions.open(auth_data, payload)
        return json({ session_id: id, expiration } satisfies typeof SessionCreated.Type, 201)
      })
    ),
    yield* endSession,
    JsonRoute.make(
      "/session/get",
      SessionKey,
      Effect.fnUntraced(function* (key) {
        const session = yield* sessions.find(key.session_id, key.session_auth)
        return json({
          session_id: session.id,
          auth_data: session.auth,
          lifetime: session.reservation.lifetime,
          expiration: session.expiration,
          created_at: session.createdAt,
          on_close_route: session.reservation.on_close_route,
          on_close_payload: session.reservation.on_close_payload
        } satisfies typeof SessionState.Type)
      })
    ),
    JsonRoute.make(
      "/session/health",
      SessionKey,
      Effect.fnUntraced(function* (key) {
        const ok = yield* sessions.find(key.session_id, key.session_auth).pipe(
          Effect.as(true),
          Effect.catchTag("SessionUnknown", () => Effect.succeed(false))
        )
        return json({ ok })
      })
    )
  ]
})

const forbiddenRoute = RequestBody.refuseField(
  ["payload", "on_close_route"],
  "callbacks do not go to link-local or metadata addresses"
)

/** Tells the instance's scripts to fetch the worker anew. */
const updateFlag = "/.force_update"

const updateRoute = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const { masterToken } = yield* WorkerConfig
    const files = yield* FileSystem.FileSystem
    const token = Redacted.value(masterToken)

    yield* router.add(
      "POST",
      "/pyworker/update",
      Effect.gen(function* () {
        const { headers } = yield* HttpServerRequest.HttpServerRequest
        if (token === "" || !sameSecret(headers.authorization ?? "", `Bearer ${token}`)) return yield* new TokenRefused()
        yield* Effect.orDie(files.writeFileString(updateFlag, ""))
        return Refusals.toResponse(json({ ok: true }))
      })
    )
  })
)

// Digests have the same length, so that the time to compare tells nothing, not even how long the secret is.
const sameSecret = (a: string, b: string) =>
  timingSafeEqual(createHash("sha256").update(a).digest(), createHash("sha256").update(b).digest())

const otherRoutes = <R = never>(handlers: ReadonlyArray<Handler.Handler<R>>) =>
  Layer.mergeAll(updateRoute, ...handlers).pipe(Layer.provide(Handler.layerTurn))

/** The routes of the public port, with these handlers'. */
export const routes = <R = never>(handlers: ReadonlyArray<Handler.Handler<R>>) =>
  Layer.merge(Layer.unwrap(Effect.map(sessionRoutes, JsonRoute.layer)), otherRoutes(handlers))

/** Serves the public port and the plain one, with these handlers. Fails with `ServeError` where a port is taken. */
export const layer = <R = never>(handlers: ReadonlyArray<Handler.Handler<R>>) =>
  Layer.unwrap(
    Effect.gen(function* () {
      const { httpPort, port, tls } = yield* WorkerConfig
      const certified = Option.isSome(tls) ? { tls: yield* readCertificate(tls.value) } : {}
      return Layer.mergeAll(
        Listener.layer(otherRoutes(handlers), { port, ...certified }, yield* sessionRoutes),
        Listener.layer(Layer.empty, { port: httpPort, host: Listener.loopback }, [yield* endSession])
      )
    })
  )

const readCertificate = Effect.fnUntraced(function* (paths: { readonly certificate: string; readonly key: string }) {
  const files = yield* FileSystem.FileSystem
  const read = (path: string) =>
    Effect.mapError(files.readFileString(path), (error) => new CertificateUnreadable({ message: error.message }))
  return { cert: yield* read(paths.certificate), key: yield* read(paths.key) }
})
