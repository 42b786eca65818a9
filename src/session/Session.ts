/**
 * A session: the reservation of a worker, held as a scoped resource.
 *
 * Opening one takes a slot, books its load and starts its lifetime. Closing its scope, for whatever reason, undoes exactly
 * that and hands over the callback. Only `Sessions` closes that scope, and whoever comes first does it.
 */

import { randomBytes } from "node:crypto"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { MetricsReporter, type Work } from "../metrics/MetricsReporter.ts"
import * as AuthData from "../protocol/AuthData.ts"
import type { Reservation } from "../protocol/SessionApi.ts"
import * as Seconds from "../Seconds.ts"
import { OnClose } from "./OnClose.ts"
import { SessionSlot, type SlotOccupied } from "./SessionSlot.ts"

/** An open session. Times are epoch seconds, `lifetime` is seconds. */
export interface Session {
  readonly id: string
  readonly auth: AuthData.AuthData
  readonly reservation: Reservation
  readonly createdAt: number
  /** When the session ends unless the client shows itself before. Only ever moves on. */
  readonly expiration: number
}

/** Why a session closed. */
export type CloseReason = "client" | "consumer" | "expired" | "shutdown"

/** The worker is stopping and takes no more sessions. Becomes 503, so that the client routes on. */
export class WorkerStopping extends Schema.TaggedError<WorkerStopping>()("WorkerStopping", {}) {}

/** No session of this id is open. */
export class SessionUnknown extends Schema.TaggedError<SessionUnknown>()("SessionUnknown", { sessionId: Schema.String }) {}

/** The caller does not hold the session's `auth_data`. */
export class SessionAuthRefused extends Schema.TaggedError<SessionAuthRefused>()("SessionAuthRefused", {}) {}

export class Sessions extends Context.Service<
  Sessions,
  {
    /** Opens a session for a request that was let in. */
    readonly open: (auth: AuthData.AuthData, reservation: Reservation) => Effect.Effect<Session, SlotOccupied | WorkerStopping>
    /** The open session of this id, for a caller that proves to have created it. */
    readonly find: (
      id: string,
      auth: { readonly [key: string]: Schema.Json } | null
    ) => Effect.Effect<Session, SessionUnknown | SessionAuthRefused>
    /** The client showed itself: the session has at least its whole lifetime before it again. */
    readonly extend: (session: Session) => Effect.Effect<void>
    /** Closes a session; false if somebody else was first. */
    readonly close: (session: Session, reason: CloseReason) => Effect.Effect<boolean>
    /** Waits until the session has ended, and so returns at once for one that has. */
    readonly ended: (session: Session) => Effect.Effect<void>
    /** Closes every open session and says which they were. */
    readonly closeAll: (reason: CloseReason) => Effect.Effect<ReadonlyArray<string>>
    /** Takes no more sessions and closes the open ones. */
    readonly shutdown: Effect.Effect<void>
  }
>()("null-pyworker/Sessions") {}

/** What is behind an open session: its scope, and its deadline on the monotonic clock, which no clock step can move. */
interface Held extends Session {
  readonly scope: Scope.Closeable
  readonly fingerprint: AuthData.Fingerprint
  readonly openedAt: number
  readonly ended: Deferred.Deferred<void>
  deadline: number
}

const make = Effect.gen(function* () {
  const slot = yield* SessionSlot
  const reporter = yield* MetricsReporter
  const onClose = yield* OnClose
  const open = new Map<string, Held>()
  let stopping = false

  const close = Effect.fnUntraced(function* (session: Session, reason: CloseReason) {
    const held = open.get(session.id)
    if (held === undefined || !open.delete(session.id)) return false
    yield* Deferred.succeed(held.ended, undefined)
    yield* Scope.close(held.scope, Exit.void)
    yield* Effect.logInfo("session closed").pipe(
      Effect.annotateLogs({ session_id: session.id, reason, held_seconds: round((yield* Seconds.monotonic) - held.openedAt) })
    )
    return true
  }, Effect.uninterruptible)

  const closeAll = Effect.fnUntraced(function* (reason: CloseReason) {
    const closed = yield* Effect.filter(Array.from(open.values()), (session) => close(session, reason))
    return closed.map((session) => session.id)
  })

  // One fiber a session. Extending moves the deadline; the fiber finds that out when it wakes. However it ends, crash
  // included, the session ends with it.
  const live = (session: Held) =>
    Effect.gen(function* () {
      while (true) {
        const left = session.deadline - (yield* Seconds.monotonic)
        if (left <= 0) return
        yield* Effect.sleep(Duration.seconds(left))
      }
    }).pipe(Effect.ensuring(close(session, "expired")))

  const acquire = Effect.fnUntraced(function* (scope: Scope.Closeable, auth: AuthData.AuthData, reservation: Reservation) {
    yield* slot.take
    yield* reporter.work(asWork(auth))
    const now = yield* Seconds.monotonic
    const session: Held = {
      id: randomBytes(16).toString("hex"),
      auth,
      reservation,
      createdAt: yield* Seconds.epoch,
      get expiration() {
        return this.createdAt + (this.deadline - this.openedAt)
      },
      scope,
      fingerprint: AuthData.fingerprint(auth),
      openedAt: now,
      ended: yield* Deferred.make<void>(),
      deadline: now + reservation.lifetime
    }
    const route = reservation.on_close_route
    if (route !== null) {
      yield* Effect.addFinalizer(() => onClose.deliver({ sessionId: session.id, route, payload: reservation.on_close_payload }))
    }
    open.set(session.id, session)
    yield* Effect.forkScoped(live(session))
    return session
  })

  const shutdown = Effect.suspend(() => {
    stopping = true
    return closeAll("shutdown")
  })
  yield* Effect.addFinalizer(() => shutdown)

  return Sessions.of({
    open: Effect.fnUntraced(function* (auth, reservation) {
      if (stopping) return yield* new WorkerStopping()
      const scope = yield* Scope.make()
      const session = yield* acquire(scope, auth, reservation).pipe(
        Scope.provide(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause))),
        Effect.tapErrorTag("SlotOccupied", () => reporter.reject(asWork(auth)))
      )
      yield* Effect.logInfo("session opened").pipe(
        Effect.annotateLogs({ session_id: session.id, lifetime: reservation.lifetime, request_idx: auth.request_idx })
      )
      return session
    }, Effect.uninterruptible),
    find: (id, auth) =>
      Effect.suspend((): Effect.Effect<Session, SessionUnknown | SessionAuthRefused> => {
        const session = open.get(id)
        if (session === undefined) return new SessionUnknown({ sessionId: id })
        const granted = auth !== null && AuthData.sameFingerprint(session.fingerprint, AuthData.fingerprint(auth))
        return granted ? Effect.succeed(session) : new SessionAuthRefused()
      }),
    extend: (session) =>
      Effect.map(Seconds.monotonic, (now) => {
        const held = open.get(session.id)
        if (held !== undefined) held.deadline = Math.max(held.deadline, now + held.reservation.lifetime)
      }),
    ended: (session) =>
      Effect.suspend(() => {
        const held = open.get(session.id)
        return held === undefined ? Effect.void : Deferred.await(held.ended)
      }),
    close,
    closeAll,
    shutdown: Effect.asVoid(shutdown)
  })
})

const asWork = (auth: AuthData.AuthData): Work => ({
  kind: "session",
  requestIdx: auth.request_idx,
  workload: AuthData.workload(auth)
})

const round = (seconds: number) => Math.round(seconds * 1000) / 1000

/** Sessions in this process. Stopping the layer closes them all, as a success. */
export const layer: Layer.Layer<Sessions, never, SessionSlot | MetricsReporter | OnClose> = Layer.effect(Sessions, make)
