/**
 * A session: the reservation of a worker, held as a scoped resource.
 *
 * Opening one takes a slot, books its load and starts its lifetime. Closing its scope, for whatever reason, undoes exactly
 * that and hands over what others are owed: the callback, and the autoscaler's word. Only `Sessions` closes that scope, and
 * whoever comes first does it. The journal has each step before anybody is told of it.
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
import * as LoadBook from "../metrics/LoadBook.ts"
import { MetricsReporter, type Work } from "../metrics/MetricsReporter.ts"
import * as AuthData from "../protocol/AuthData.ts"
import type { Reservation } from "../protocol/SessionApi.ts"
import * as Seconds from "../Seconds.ts"
import { OnClose } from "./OnClose.ts"
import { type Debts, SessionJournal } from "./SessionJournal.ts"
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
    readonly find: (id: string, auth: Schema.JsonObject | null) => Effect.Effect<Session, SessionUnknown | SessionAuthRefused>
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
  readonly openedAt: number
  readonly ended: Deferred.Deferred<void>
  expiration: number
  deadline: number
}

const make = Effect.gen(function* () {
  const slot = yield* SessionSlot
  const reporter = yield* MetricsReporter
  const onClose = yield* OnClose
  const journal = yield* SessionJournal
  const open: Record<string, Held> = Object.create(null) // no Map: see SessionJournal
  let stopping = false

  const close = (session: Session, reason: CloseReason) =>
    Effect.uninterruptible(
      Effect.suspend(() => {
        const held = open[session.id]
        if (held === undefined) return Effect.succeed(false)
        delete open[session.id]
        return Effect.as(release(held, reason), true)
      })
    )

  const release = Effect.fnUntraced(function* ({ ended, id, openedAt, scope }: Held, reason: CloseReason) {
    yield* Deferred.succeed(ended, undefined)
    yield* Scope.close(scope, Exit.void)
    const held_seconds = round((yield* Seconds.monotonic) - openedAt)
    yield* Effect.logInfo("session closed", { session_id: id, reason, held_seconds })
  })

  const closeAll = Effect.fnUntraced(function* (reason: CloseReason) {
    const closed = yield* Effect.filter(Object.values(open), (session) => close(session, reason))
    return closed.map((session) => session.id)
  })

  // One fiber a session. Extending moves the deadline; the fiber finds that out when it wakes. However it ends, crash
  // included, the session ends with it.
  const live = (session: Held) => Effect.ensuring(sleepUntilDeadline(session), close(session, "expired"))

  const sleepUntilDeadline = (session: Held): Effect.Effect<void> =>
    Effect.flatMap(Seconds.monotonic, (now) =>
      now < session.deadline
        ? Effect.flatMap(Effect.sleep(Duration.seconds(session.deadline - now)), () => sleepUntilDeadline(session))
        : Effect.void
    )

  /** Has the journal keep what others are owed of a session that is over, and sees to it that they get it. */
  const owe = (id: string, debts: Debts) => Effect.andThen(keep(id, debts), pay(id, debts))

  const keep = (id: string, debts: Debts) =>
    debts.callback === null && debts.deletion === null ? journal.remove(id) : journal.put({ id, entry: debts, expiration: 0 })

  const pay = (id: string, { callback, deletion }: Debts): Effect.Effect<void> => {
    if (callback === null) return deletion === null ? Effect.void : reporter.forget(deletion, journal.remove(id))
    const deliver = (settled: Effect.Effect<void>) => onClose.deliver({ sessionId: id, ...callback }, settled)
    if (deletion === null) return deliver(journal.remove(id))
    // Whichever is settled first leaves the other, and the last one nothing.
    let left: Debts = { _tag: "owed", callback, deletion }
    const settle = (debt: "callback" | "deletion") =>
      Effect.suspend(() => {
        left = { ...left, [debt]: null }
        return keep(id, left)
      })
    return Effect.andThen(reporter.forget(deletion, settle("deletion")), deliver(settle("callback")))
  }

  /** The end of a session, as the journal has it from now on, whatever becomes of this process. */
  const end = ({ auth, createdAt, id, reservation }: Session) =>
    Effect.flatMap(Seconds.epoch, (now) => {
      const route = reservation.on_close_route
      const times = { enteredQueueAt: createdAt, startedAt: createdAt }
      return owe(id, {
        _tag: "owed",
        callback: route === null ? null : { route, payload: reservation.on_close_payload },
        deletion: LoadBook.deletion({ ...asWork(auth), ...times }, "Success", now)
      })
    })

  const refuse = Effect.fnUntraced(function* (auth: AuthData.AuthData) {
    yield* reporter.reject(asWork(auth))
    const times = { enteredQueueAt: yield* Seconds.epoch, startedAt: 0 }
    const deletion = LoadBook.deletion({ ...asWork(auth), ...times }, "Rejected", 0)
    if (deletion !== null) yield* owe(newId(), { _tag: "owed", callback: null, deletion })
  })

  /** Holds a session for `left` seconds from `since`, which is on the monotonic clock. */
  const acquire = (session: Session, since: number, left: number) =>
    Effect.suspend(() => {
      const scope = Scope.makeUnsafe()
      const held: Held = { ...session, scope, openedAt: since, deadline: since + left, ended: Deferred.makeUnsafe() }
      return Effect.onError(Scope.provide(hold(held), scope), (cause) => Scope.close(scope, Exit.failCause(cause)))
    })

  const hold = Effect.fnUntraced(function* (held: Held) {
    const { auth, createdAt, expiration, id, reservation, scope } = held
    yield* slot.take
    yield* reporter.work(asWork(auth))
    yield* Scope.addFinalizer(scope, end(held))
    yield* journal.put({ id, entry: { _tag: "open", auth, reservation, createdAt }, expiration })
    open[id] = held
    yield* Effect.forkIn(live(held), scope, { startImmediately: true })
    return held
  })

  // What an earlier process left: it goes on as if that had not gone. A session whose life ran out meanwhile ends at once.
  const restore = Effect.gen(function* () {
    const now = yield* Seconds.now
    const rows = yield* journal.rows
    const debts = rows.flatMap(({ entry, id }) => (entry._tag === "owed" ? [{ id, entry }] : []))
    for (const { entry, id } of debts.sort((a, b) => endOf(a.entry) - endOf(b.entry))) yield* pay(id, entry)
    for (const { entry, expiration, id } of rows) {
      if (entry._tag === "owed") continue
      // Whatever the clock did meanwhile, nobody gets more than a lifetime.
      const { auth, createdAt, reservation } = entry
      const left = Math.min(Math.max(expiration - now.epoch, 0), reservation.lifetime)
      const session: Session = { id, auth, reservation, createdAt, expiration: now.epoch + left }
      const restored = yield* Effect.uninterruptible(Effect.exit(acquire(session, now.monotonic, left)))
      // There is less room than there was.
      if (Exit.isFailure(restored)) yield* end(session)
      yield* Effect.logInfo(Exit.isSuccess(restored) ? "session restored" : "session not restored", {
        session_id: id,
        left_seconds: round(left)
      })
    }
  })

  const shutdown = Effect.suspend(() => {
    stopping = true
    return closeAll("shutdown")
  })
  yield* Effect.addFinalizer(() => shutdown)
  yield* restore

  return Sessions.of({
    open: Effect.fnUntraced(function* (auth, reservation) {
      if (stopping) return yield* new WorkerStopping()
      const now = yield* Seconds.now
      const { lifetime } = reservation
      const asked: Session = { id: newId(), auth, reservation, createdAt: now.epoch, expiration: now.epoch + lifetime }
      const session = yield* Effect.tapErrorTag(acquire(asked, now.monotonic, lifetime), "SlotOccupied", () => refuse(auth))
      yield* Effect.logInfo("session opened", { session_id: session.id, lifetime, request_idx: auth.request_idx })
      return session
    }, Effect.uninterruptible),
    find: (id, auth) =>
      Effect.suspend((): Effect.Effect<Session, SessionUnknown | SessionAuthRefused> => {
        const session = open[id]
        if (session === undefined) return new SessionUnknown({ sessionId: id })
        const granted = auth !== null && AuthData.isSame(session.auth, auth)
        return granted ? Effect.succeed(session) : new SessionAuthRefused()
      }),
    extend: (session) =>
      Effect.flatMap(Seconds.monotonic, (now) => {
        const held = open[session.id]
        const more = held === undefined ? 0 : now + held.reservation.lifetime - held.deadline
        if (held === undefined || more <= 0) return Effect.void
        held.deadline += more
        held.expiration += more
        return journal.extend(held.id, held.expiration)
      }),
    ended: (session) =>
      Effect.suspend(() => {
        const held = open[session.id]
        return held === undefined ? Effect.void : Deferred.await(held.ended)
      }),
    close,
    closeAll,
    shutdown: Effect.asVoid(shutdown)
  })
})

// The system is asked for many random bytes at a time, because a call for 16 costs as much.
const random = { bytes: Buffer.alloc(0), used: 0 }
const newId = () => {
  if (random.used === random.bytes.length) Object.assign(random, { bytes: randomBytes(4096), used: 0 })
  const from = random.used
  random.used += 16
  return random.bytes.toString("hex", from, random.used)
}

const asWork = (auth: AuthData.AuthData): Work => ({
  kind: "session",
  requestIdx: auth.request_idx,
  workload: AuthData.workload(auth)
})

const endOf = ({ deletion }: Debts) => (deletion === null ? 0 : deletion.work_completed_at || deletion.entered_queue_at)

const round = (seconds: number) => Math.round(seconds * 1000) / 1000

/** Sessions in this process. Stopping the layer closes them all, as a success. */
export const layer: Layer.Layer<Sessions, never, SessionSlot | MetricsReporter | OnClose | SessionJournal> = Layer.effect(
  Sessions,
  make
)
