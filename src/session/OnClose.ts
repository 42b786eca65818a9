/**
 * Tells the user that a session has closed, by the callback that the client asked for (wire section 6).
 *
 * A delivery is a fiber of its own: it never holds up the answer to `/session/end` or the slot. It is tried again with
 * backoff until the receiver answers, and a worker that stops gives what is under way a last chance. A receiver may be told
 * twice, of which `Idempotency-Key`, the session's id, tells it.
 */

import { BlockList, isIP } from "node:net"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Semaphore from "effect/Semaphore"
import { WorkerConfig } from "../config.ts"

/** What a client asked to be told when its session closes. */
export interface Callback {
  readonly sessionId: string
  readonly route: string
  readonly payload: Schema.Json
}

export class OnClose extends Context.Service<
  OnClose,
  {
    /** Takes the callback over and returns at once. `settled` is run when its receiver has answered, or is given up. */
    readonly deliver: (callback: Callback, settled: Effect.Effect<void>) => Effect.Effect<void>
  }
>()("null-pyworker/OnClose") {}

// Who only the instance's own network answers: link-local addresses, which most clouds' metadata services have, and the
// metadata addresses of those that chose others. Loopback is not among them: a consumer's callback is often there.
const forbidden = new BlockList()
forbidden.addSubnet("169.254.0.0", 16, "ipv4")
forbidden.addSubnet("fe80::", 10, "ipv6")
forbidden.addAddress("fd00:ec2::254", "ipv6") // AWS
forbidden.addAddress("100.100.100.200", "ipv4") // Alibaba
forbidden.addAddress("168.63.129.16", "ipv4") // Azure
forbidden.addAddress("192.0.0.192", "ipv4") // Oracle

/** Whether a URL names an address that callbacks do not go to. A host's name is looked up, and judged, with each attempt. */
export const isForbidden = (route: string): boolean => {
  const host = new URL(route).hostname.replace(/^\[|\]$/g, "")
  const family = isIP(host)
  return family !== 0 && forbidden.check(host, family === 6 ? "ipv6" : "ipv4")
}

/** The client that callbacks go out by. */
export class Outbound extends Context.Service<Outbound, HttpClient.HttpClient>()("null-pyworker/OnClose/Outbound") {}

/** Node's client, which connects to no forbidden address, whatever a name resolves to, unless `ON_CLOSE_ALLOW_PRIVATE` is set. */
export const layerOutboundNode: Layer.Layer<Outbound, never, WorkerConfig> = Layer.effect(
  Outbound,
  Effect.gen(function* () {
    const { onCloseAllowPrivate } = yield* WorkerConfig
    // Node's agents hand all of their options on to `net.connect`, which their type does not say.
    const options: NodeHttpClient.HttpAgentOptions & { readonly blockList?: BlockList } = onCloseAllowPrivate
      ? {}
      : { blockList: forbidden }
    const agent = yield* NodeHttpClient.makeAgent(options)
    return yield* Effect.provideService(NodeHttpClient.makeNodeHttp, NodeHttpClient.HttpAgent, agent)
  })
)

/** An attempt that is worth another: no answer, or one that says so. */
class Undelivered extends Schema.TaggedError<Undelivered>()("Undelivered", { reason: Schema.String }) {}

const attemptTimeout = Duration.seconds(10)
/** About ten minutes of trying. */
const backoff = Schedule.min([Schedule.exponential("500 millis"), Schedule.spaced("1 minute")]).pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 16 })
)
/** What deliveries under way get when the worker stops, and how often they then try. */
const lastChance = Duration.millis(2500)
const lastSpacing = Duration.millis(250)
/** Attempts at the same time: receivers that hang must not cost a connection each session. */
const atOnce = 100

/** The body that the receiver gets: the payload, with the session's id unless it brings its own. */
export const body = ({ payload, sessionId }: Callback): { readonly [key: string]: Schema.Json } => {
  return Object.assign({ session_id: sessionId }, isFields(payload) ? payload : payload === null ? {} : { payload })
}

// User info and query are where callers put their secrets.
const withoutSecrets = (route: string) => {
  const { origin, pathname } = new URL(route)
  return `${origin}${pathname}`
}

const isFields = Schema.is(Schema.JsonObject)

const make = Effect.gen(function* () {
  const client = yield* Outbound
  const attempts = yield* Semaphore.make(atOnce)
  const stopping = yield* Latch.make(false)
  const deliveries = yield* FiberSet.make<void>()
  yield* Effect.addFinalizer(() =>
    Effect.andThen(stopping.open, FiberSet.awaitEmpty(deliveries).pipe(Effect.timeoutOption(lastChance)))
  )

  const attempt = (callback: Callback) =>
    HttpClientRequest.post(callback.route).pipe(
      HttpClientRequest.setHeader("idempotency-key", callback.sessionId),
      HttpClientRequest.bodyJsonUnsafe(body(callback)),
      client.execute,
      Effect.flatMap((response) => Effect.as(response.arrayBuffer, response.status)),
      Effect.timeout(attemptTimeout),
      Effect.mapError((error) => new Undelivered({ reason: error.message })),
      Effect.filterOrFail(
        (status) => status < 500 && status !== 408 && status !== 429,
        (status) => new Undelivered({ reason: `status ${status}` })
      ),
      attempts.withPermits(1)
    )

  // A stopping worker does not sit out a long wait: it tries again at once, and then often.
  const patience = Schedule.modifyDelay(backoff, ({ duration }) =>
    Effect.sleep(duration).pipe(
      Effect.raceFirst(Effect.andThen(stopping.await, Effect.sleep(lastSpacing))),
      Effect.as(Duration.zero)
    )
  )

  return OnClose.of({
    deliver: (callback, settled) =>
      attempt(callback).pipe(
        Effect.retry(patience),
        Effect.matchEffect({
          onSuccess: (status) =>
            status < 400
              ? Effect.logInfo("on_close delivered")
              : Effect.logWarning("on_close refused by its receiver", { status }),
          onFailure: ({ reason }) => Effect.logError("on_close lost", { reason })
        }),
        Effect.andThen(settled),
        Effect.onInterrupt(() => Effect.logError("on_close not answered before the worker stopped")),
        Effect.annotateLogs({ session_id: callback.sessionId, route: withoutSecrets(callback.route) }),
        FiberSet.run(deliveries),
        Effect.asVoid
      )
  })
})

/** Delivers over HTTP. */
export const layer: Layer.Layer<OnClose, never, Outbound> = Layer.effect(OnClose, make)
