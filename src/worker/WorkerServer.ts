/**
 * The worker's public port: sessions, management, and the handlers' routes (wire sections 2, 4 and 5). Beside it, on loopback
 * and in plain HTTP, `/session/end` for whoever on the instance holds a session.
 */

import { createHash, timingSafeEqual } from "node:crypto"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"
import { CreateSession, type SessionCreated, type SessionEnded, SessionKey, type SessionState } from "../protocol/SessionApi.ts"
import * as OnClose from "../session/OnClose.ts"
import { Sessions } from "../session/Session.ts"
import * as Handler from "./Handler.ts"
import * as Listener from "./Listener.ts"
import { SessionGone, TokenRefused } from "./Refusals.ts"
import { RequestAuth } from "./RequestAuth.ts"
import * as RequestBody from "./RequestBody.ts"

/** The certificate or its key cannot be read. */
export class CertificateUnreadable extends Schema.TaggedError<CertificateUnreadable>()("CertificateUnreadable", {
  message: Schema.String
}) {}

const json = <A>(body: A, status = 200) => HttpServerResponse.jsonUnsafe(body, { status })

const readKey = RequestBody.read(SessionKey)

const endSession = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const sessions = yield* Sessions
    yield* router.add(
      "POST",
      "/session/end",
      Effect.gen(function* () {
        const key = yield* readKey
        const session = yield* sessions.find(key.session_id, key.session_auth)
        const closed = yield* sessions.close(session, "client")
        if (!closed) return yield* new SessionGone({ message: "session already closed" })
        return json<typeof SessionEnded.Type>({ ended: true, removed_session: session.id })
      })
    )
  })
)

const sessionRoutes = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const sessions = yield* Sessions
    const auth = yield* RequestAuth
    const { onCloseAllowPrivate } = yield* WorkerConfig
    const readCreate = RequestBody.read(CreateSession)

    yield* router.add(
      "POST",
      "/session/create",
      Effect.gen(function* () {
        const request = yield* readCreate
        const route = request.payload.on_close_route
        if (route !== null && !onCloseAllowPrivate && OnClose.isForbidden(route)) yield* forbiddenRoute
        yield* auth.verify(request.auth_data)
        const session = yield* sessions.open(request.auth_data, request.payload)
        return json<typeof SessionCreated.Type>({ session_id: session.id, expiration: session.expiration }, 201)
      })
    )
    yield* router.add(
      "POST",
      "/session/get",
      Effect.gen(function* () {
        const key = yield* readKey
        const session = yield* sessions.find(key.session_id, key.session_auth)
        return json<typeof SessionState.Type>({
          session_id: session.id,
          auth_data: session.auth,
          lifetime: session.reservation.lifetime,
          expiration: session.expiration,
          created_at: session.createdAt,
          on_close_route: session.reservation.on_close_route,
          on_close_payload: session.reservation.on_close_payload
        })
      })
    )
    yield* router.add(
      "POST",
      "/session/health",
      Effect.gen(function* () {
        const key = yield* readKey
        const ok = yield* sessions.find(key.session_id, key.session_auth).pipe(
          Effect.as(true),
          Effect.catchTag("SessionUnknown", () => Effect.succeed(false))
        )
        return json({ ok })
      })
    )
  })
)

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
        return json({ ok: true })
      })
    )
  })
)

// Digests have the same length, so that the time to compare tells nothing, not even how long the secret is.
const sameSecret = (a: string, b: string) =>
  timingSafeEqual(createHash("sha256").update(a).digest(), createHash("sha256").update(b).digest())

/** The routes of the public port, with these handlers'. */
export const routes = <R = never>(handlers: ReadonlyArray<Handler.Handler<R>>) =>
  Layer.mergeAll(endSession, sessionRoutes, updateRoute, ...handlers).pipe(Layer.provide(Handler.layerTurn))

/** Serves the public port and the plain one, with these handlers. Fails with `ServeError` where a port is taken. */
export const layer = <R = never>(handlers: ReadonlyArray<Handler.Handler<R>>) =>
  Layer.unwrap(
    Effect.gen(function* () {
      const { httpPort, port, tls } = yield* WorkerConfig
      const certified = Option.isSome(tls) ? { tls: yield* readCertificate(tls.value) } : {}
      return Layer.mergeAll(
        Listener.layer(routes(handlers), { port, ...certified }),
        Listener.layer(endSession, { port: httpPort, host: Listener.loopback })
      )
    })
  )

const readCertificate = Effect.fnUntraced(function* (paths: { readonly certificate: string; readonly key: string }) {
  const files = yield* FileSystem.FileSystem
  const read = (path: string) =>
    Effect.mapError(files.readFileString(path), (error) => new CertificateUnreadable({ message: error.message }))
  return { cert: yield* read(paths.certificate), key: yield* read(paths.key) }
})
