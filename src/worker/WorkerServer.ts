/**
 * The worker's public port: sessions, management, and the handlers' routes (wire sections 2, 4 and 5). Beside it, on loopback
 * and in plain HTTP, `/session/end` for whoever on the instance holds a session.
 */

import { createHash, timingSafeEqual } from "node:crypto"
import { createServer, type Server } from "node:http"
import { createServer as createTlsServer } from "node:https"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as HttpRouter from "effect/http/HttpRouter"
import type { ServeError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"
import type { MetricsReporter } from "../metrics/MetricsReporter.ts"
import { CreateSession, type SessionCreated, type SessionEnded, SessionKey, type SessionState } from "../protocol/SessionApi.ts"
import { Sessions } from "../session/Session.ts"
import type { Handler } from "./Handler.ts"
import * as Refusals from "./Refusals.ts"
import { RequestAuth } from "./RequestAuth.ts"

/** The certificate or its key cannot be read. */
export class CertificateUnreadable extends Schema.TaggedError<CertificateUnreadable>()("CertificateUnreadable", {
  message: Schema.String
}) {}

const json = <A>(body: A, status = 200) => HttpServerResponse.jsonUnsafe(body, { status })

const readKey = Refusals.body(SessionKey)

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
        if (!closed) return yield* new Refusals.SessionGone({ message: "session already closed" })
        return json<typeof SessionEnded.Type>({ ended: true, removed_session: session.id })
      })
    )
  })
)

const sessionRoutes = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const sessions = yield* Sessions
    const auth = yield* RequestAuth
    const readCreate = Refusals.body(CreateSession)

    yield* router.add(
      "POST",
      "/session/create",
      Effect.gen(function* () {
        const request = yield* readCreate
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
        if (token === "" || !sameSecret(headers.authorization ?? "", `Bearer ${token}`)) return yield* new Refusals.TokenRefused()
        yield* Effect.orDie(files.writeFileString(updateFlag, ""))
        return json({ ok: true })
      })
    )
  })
)

// Digests have the same length, so that the time to compare tells nothing, not even how long the secret is.
const sameSecret = (a: string, b: string) =>
  timingSafeEqual(createHash("sha256").update(a).digest(), createHash("sha256").update(b).digest())

/** The routes of the public port, with these handlers' and the answers to every refusal; for a server of any kind. */
export const routes = (handlers: ReadonlyArray<Handler>) =>
  Layer.mergeAll(endSession, sessionRoutes, updateRoute, Refusals.layer, ...handlers)

/** How long requests in flight may take once the server stops. */
const grace = "1 second"

/**
 * Idle connections are kept longer than any client keeps them (the SDK: 15 s), so that it is never us who close one that a
 * client is about to use: the SDK would take that for a lost worker, and its session for lost.
 */
const keepAlive = 75_000

/** Serves routes on a Node server of their own, and leaves no connection behind. */
export const listen = <A, E, R>(
  routes: Layer.Layer<A, E, R>,
  server: Server,
  options: { readonly port: number; readonly host?: string }
) =>
  HttpRouter.serve(routes, { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(Layer.effectDiscard(Effect.addFinalizer(() => Effect.sync(() => server.closeAllConnections())))),
    Layer.provide(
      NodeHttpServer.layer(() => Object.assign(server, { keepAliveTimeout: keepAlive }), {
        ...options,
        gracefulShutdownTimeout: grace
      })
    )
  )

const loopback = "127.0.0.1"

/** Serves the public port and the plain one, with these handlers. */
export const layer = (
  handlers: ReadonlyArray<Handler>
): Layer.Layer<
  never,
  ServeError | CertificateUnreadable,
  WorkerConfig | Sessions | RequestAuth | MetricsReporter | FileSystem.FileSystem
> =>
  Layer.unwrap(
    Effect.gen(function* () {
      const config = yield* WorkerConfig
      const server = yield* Option.match(config.tls, { onNone: () => Effect.sync(() => createServer()), onSome: tlsServer })
      return Layer.mergeAll(
        listen(routes(handlers), server, { port: config.port }),
        listen(Layer.merge(endSession, Refusals.layer), createServer(), { port: config.httpPort, host: loopback })
      )
    })
  )

const tlsServer = Effect.fnUntraced(function* (paths: { readonly certificate: string; readonly key: string }) {
  const files = yield* FileSystem.FileSystem
  const read = (path: string) =>
    Effect.mapError(files.readFileString(path), (error) => new CertificateUnreadable({ message: error.message }))
  const cert = yield* read(paths.certificate)
  const key = yield* read(paths.key)
  return yield* Effect.try({
    try: () => createTlsServer({ cert, key }),
    catch: (cause) => new CertificateUnreadable({ message: `${paths.certificate}: ${cause}` })
  })
})
