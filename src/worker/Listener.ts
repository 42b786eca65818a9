/**
 * A router's routes on a Node server of their own.
 */
import type { Server } from "node:http"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import { MaxBodySize } from "effect/http/HttpIncomingMessage"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Refusals from "./Refusals.ts"

/** The loopback address, for whom only the instance itself may reach. */
export const loopback = "127.0.0.1"

/** How long requests in flight may take once the server stops. */
const grace = "1 second"

/**
 * Idle connections are kept longer than any client keeps them (the SDK: 15 s), so that it is never us who close one that a
 * client is about to use: the SDK would take that for a lost worker, and its session for lost.
 */
const keepAlive = 75_000

/** More than any request that is no work in itself; nobody has proved who they are while a body is read. */
const maxBody = ByteSize.fromInputUnsafe("1 MiB")

/** Serves routes, with the answers to every refusal, and leaves no connection behind. */
export const layer = <A, E, R>(
  routes: Layer.Layer<A, E, R>,
  server: Server,
  options: { readonly port: number; readonly host?: string }
) =>
  HttpRouter.serve(Layer.merge(routes, Refusals.layer), { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(Layer.effectDiscard(Effect.addFinalizer(() => Effect.sync(() => server.closeAllConnections())))),
    Layer.provide(
      NodeHttpServer.layer(() => Object.assign(server, { keepAliveTimeout: keepAlive }), {
        ...options,
        gracefulShutdownTimeout: grace
      })
    ),
    Layer.provide(Layer.succeed(MaxBodySize, maxBody))
  )
