/**
 * Where a router's routes are reached: on ports of this machine, unless another layer says otherwise.
 */
import { createServer, type RequestListener, type Server } from "node:http"
import { createServer as createTlsServer } from "node:https"
import type { Duplex } from "node:stream"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { toIncomingMessage } from "@effect/platform-node/NodeHttpServerRequest"
import * as ByteSize from "effect/ByteSize"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { MaxBodySize } from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import { ServeError } from "effect/http/HttpServerError"
import { HttpServerRequest } from "effect/http/HttpServerRequest"
import { type HttpServerResponse, jsonUnsafe, setHeader } from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { WorkerConfig } from "../config.ts"
import * as JsonRoute from "./JsonRoute.ts"
import * as Refusals from "./Refusals.ts"
import * as Shortcut from "./Shortcut.ts"

/** An address to be reached at. Without a host it is every interface of the machine. */
export interface Address {
  readonly port: number
  readonly host?: string
  /** Certificate and key in PEM: the address speaks TLS. */
  readonly tls?: { readonly cert: string; readonly key: string }
}

/** The loopback host, for what only the instance itself may reach. */
export const loopback = "127.0.0.1"

/** What answers the requests to an address. */
export type App = Effect.Effect<HttpServerResponse, unknown, HttpServerRequest | Scope.Scope>

export class Listener extends Context.Service<
  Listener,
  {
    /**
     * Has the app answer at this address until the scope closes, and leaves no connection behind then. Of its routes, those
     * in `direct` may be answered without it.
     */
    readonly listen: (
      app: App,
      address: Address,
      direct: ReadonlyArray<JsonRoute.JsonRoute>
    ) => Effect.Effect<void, ServeError, Scope.Scope>
  }
>()("null-pyworker/Listener") {}

/** How long requests in flight may take once the server stops. */
const grace = "1 second"

/**
 * Idle connections are kept longer than any client keeps them (the SDK: 15 s), so that it is never us who close one that a
 * client is about to use: the SDK would take that for a lost worker, and its session for lost.
 */
const keepAliveTimeout = 75_000

/** Milliseconds within which a request's headers, and all of it, have to be there. */
const timeouts = { headersTimeout: 10_000, requestTimeout: 20_000 }

// To look after them wakes an idle worker. Nobody but the instance itself can be slow on loopback.
const checkEvery = (host: string | undefined) => (host === loopback ? 60_000 : 5000)

// What Node says of a request that never became one, in the form of all our errors.
const broken: Readonly<Record<string, readonly [status: string, error: string]>> = {
  ERR_HTTP_REQUEST_TIMEOUT: ["408 Request Timeout", "request not received in time"],
  HPE_HEADER_OVERFLOW: ["431 Request Header Fields Too Large", "headers too large"]
}

const answerBroken = (error: NodeJS.ErrnoException, socket: Duplex) =>
  refuse(socket, broken[error.code ?? ""] ?? ["400 Bad Request", "not HTTP"])

const refuse = (socket: Duplex, [status, what]: readonly [status: string, error: string]) => {
  if (!socket.writable) return socket.destroy()
  const body = JSON.stringify({ error: what })
  return socket.end(
    `HTTP/1.1 ${status}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`
  )
}

// What Node's server does not see to: that a request has a host, and that it is not done where its answer cannot be sent
// because the answer to an earlier one has ended the connection. And an answer that comes before the end of a body of unknown
// length ends the connection, so it has to say so.
const guarded = (app: App): App =>
  Effect.flatMap(HttpServerRequest, (request) => {
    const source = toIncomingMessage(request)
    if (!source.socket.writable) return Effect.interrupt
    if (request.headers.host === undefined) return Effect.succeed(jsonUnsafe({ error: "no Host" }, { status: 400 }))
    return Effect.map(app, (response) =>
      source.headers["transfer-encoding"] === undefined ? response : setHeader(response, "connection", "close")
    )
  })

/** Listens on ports, with Node's own servers. */
export const layerNode: Layer.Layer<Listener> = Layer.succeed(Listener, {
  listen: Effect.fnUntraced(function* (app, { tls, ...address }, direct) {
    const server = yield* Effect.try({
      try: (): Server => {
        const connectionsCheckingInterval = checkEvery(address.host)
        const options = { ...timeouts, connectionsCheckingInterval, keepAliveTimeout, requireHostHeader: false }
        return tls === undefined ? createServer(options) : createTlsServer({ ...tls, ...options })
      },
      catch: (cause) => new ServeError({ cause })
    })
    server.on("clientError", answerBroken)
    server.on("connect", (_request, socket) => refuse(socket, ["405 Method Not Allowed", "no proxy"]))
    server.on("checkExpectation", (_request, response) => {
      response.writeHead(417, { "content-type": "application/json" })
      response.end(JSON.stringify({ error: "unknown expectation" }))
    })
    const { serve } = yield* NodeHttpServer.make(() => server, { ...address, gracefulShutdownTimeout: grace })
    yield* Effect.addFinalizer(() => Effect.sync(() => server.closeAllConnections()))
    yield* serve(guarded(app))
    // No other protocol is spoken here: who asks for one is answered in HTTP. (So the build leaves out `ws`, for 0.7 MB.)
    server.removeAllListeners("upgrade")
    // What Effect's server has registered becomes what is left of the requests when the shortcut has taken its own.
    const limit = yield* MaxBodySize
    const [theLongWay] = server.listeners("request") as [RequestListener]
    server.off("request", theLongWay)
    const maxBodyBytes = limit === undefined ? Number.POSITIVE_INFINITY : ByteSize.toNumberUnsafe(limit)
    server.on("request", yield* Shortcut.make(direct, { maxBodyBytes, theLongWay }))
  })
})

/**
 * Serves routes at an address, and those in `direct`, with the answers to every refusal. A body of more than `MAX_BODY_BYTES`
 * is one.
 */
export const layer = <A, E, R>(routes: Layer.Layer<A, E, R>, address: Address, direct: ReadonlyArray<JsonRoute.JsonRoute> = []) =>
  Layer.effectDiscard(
    Effect.gen(function* () {
      const { listen } = yield* Listener
      const { maxBodyBytes } = yield* WorkerConfig
      // Routes bring what they need with them, which a type that is generic in them cannot say.
      // The refusals come first, and so are around whatever middleware the routes have.
      const all = Layer.merge(routes, JsonRoute.layer(direct))
      const app = (yield* HttpRouter.toHttpEffect(Layer.provideMerge(all, Refusals.layer))) as App
      yield* Effect.provideService(listen(app, address, direct), MaxBodySize, ByteSize.bytes(maxBodyBytes))
    })
  )
