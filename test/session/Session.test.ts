import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as MetricsReporter from "../../src/metrics/MetricsReporter.ts"
import type { AuthData } from "../../src/protocol/AuthData.ts"
import * as OnClose from "../../src/session/OnClose.ts"
import * as Session from "../../src/session/Session.ts"
import * as SessionJournal from "../../src/session/SessionJournal.ts"
import * as SessionSlot from "../../src/session/SessionSlot.ts"

const auth = (request_idx: number): AuthData => ({ url: "http://worker", signature: "s", cost: 100, request_idx })
const reservation = { lifetime: 60, on_close_route: "http://user/closed", on_close_payload: null }

const testLayer = (options: { readonly capacity?: number; readonly deliver?: OnClose.OnClose["Service"]["deliver"] } = {}) => {
  const delivered: Array<string> = []
  const deliver = options.deliver ?? (({ sessionId }: OnClose.Callback) => Effect.sync(() => void delivered.push(sessionId)))
  const layer = Session.layer.pipe(
    Layer.provide([SessionSlot.layerCapacity(options.capacity ?? 1), SessionJournal.layerMemory]),
    Layer.provide(Layer.succeed(OnClose.OnClose, { deliver })),
    Layer.provideMerge(MetricsReporter.layerTest)
  )
  return { delivered, layer }
}

describe("Sessions", () => {
  it.effect("gives one of a thousand creates at the same instant the slot, and books the rest as rejected", () => {
    const { layer } = testLayer()
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const exits = yield* Effect.forEach(
        Array.from({ length: 1000 }, (_, idx) => idx),
        (idx) => Effect.exit(sessions.open(auth(idx), reservation)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
      yield* TestClock.adjust("2 seconds")
      const { deleted, statuses } = yield* MetricsReporter.RecordedReports
      assert.deepInclude(statuses.at(-1), { cur_load: 100, new_load: 100, rej_load: 99900, num_requests_recieved: 1000 })
      assert.strictEqual(deleted.length, 999)
      assert.strictEqual(new Set(deleted.map((request) => request.request_idx)).size, 999)
      assert.isTrue(deleted.every((request) => request.status === "Rejected"))
    }).pipe(Effect.provide(layer))
  })

  it.effect("ends a session when its lifetime is over, not before", () => {
    const { delivered, layer } = testLayer()
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const session = yield* sessions.open(auth(1), reservation)
      assert.strictEqual(session.expiration, 60)
      yield* TestClock.adjust("59999 millis")
      assert.strictEqual((yield* sessions.find(session.id, auth(1))).id, session.id)
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* Effect.flip(sessions.find(session.id, auth(1))))._tag, "SessionUnknown")
      assert.deepStrictEqual(delivered, [session.id])
      yield* sessions.open(auth(2), reservation)
    }).pipe(Effect.provide(layer))
  })

  it.effect("extends a session to a lifetime from now, however often the client shows itself", () => {
    const { layer } = testLayer()
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const session = yield* sessions.open(auth(1), reservation)
      for (let ping = 0; ping < 100; ping++) yield* sessions.extend(session)
      assert.strictEqual(session.expiration, 60)
      yield* TestClock.adjust("40 seconds")
      yield* sessions.extend(session)
      assert.strictEqual(session.expiration, 100)
      yield* TestClock.adjust("59 seconds")
      yield* sessions.find(session.id, auth(1))
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual((yield* Effect.flip(sessions.find(session.id, auth(1))))._tag, "SessionUnknown")
    }).pipe(Effect.provide(layer))
  })

  it.effect("opens to whoever holds the auth_data, compared by value, and to nobody else", () => {
    const { layer } = testLayer()
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const session = yield* sessions.open(auth(1), reservation)
      const { url, ...rest } = auth(1)
      yield* sessions.find(session.id, { ...rest, url })
      for (const other of [null, {}, auth(2), { ...auth(1), more: 1 }]) {
        assert.strictEqual((yield* Effect.flip(sessions.find(session.id, other)))._tag, "SessionAuthRefused")
      }
    }).pipe(Effect.provide(layer))
  })

  it.effect("lets only one of many closers close", () => {
    const { delivered, layer } = testLayer()
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const session = yield* sessions.open(auth(1), { ...reservation, lifetime: 1 })
      const closers = yield* Effect.forEach(Array(10).fill("client"), () => Effect.forkChild(sessions.close(session, "client")))
      yield* TestClock.adjust("1 seconds")
      const closed = yield* Effect.forEach(closers, (fiber) => Effect.suspend(() => fiber.pollUnsafe() ?? Effect.die("waits")))
      assert.strictEqual(closed.filter(Boolean).length, 1)
      assert.deepStrictEqual(delivered, [session.id])
    }).pipe(Effect.provide(layer))
  })

  it.effect("closes what is open when the worker stops, and opens nothing more", () => {
    const { delivered, layer } = testLayer({ capacity: 3 })
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const open = yield* Effect.forEach([1, 2], (idx) => sessions.open(auth(idx), reservation))
      yield* sessions.shutdown
      assert.deepStrictEqual(
        delivered,
        open.map((session) => session.id)
      )
      assert.strictEqual((yield* Effect.flip(sessions.open(auth(3), reservation)))._tag, "WorkerStopping")
    }).pipe(Effect.provide(layer))
  })

  it.effect("frees the slot and books the load even when handing over the callback crashes", () => {
    let crashes = 1
    const { layer } = testLayer({ deliver: () => (crashes-- > 0 ? Effect.die("no memory") : Effect.void) })
    return Effect.gen(function* () {
      const sessions = yield* Session.Sessions
      const session = yield* sessions.open(auth(1), reservation)
      assert.isTrue(Exit.hasDies(yield* Effect.exit(sessions.close(session, "client"))))
      yield* sessions.open(auth(2), reservation)
      yield* TestClock.adjust("2 seconds")
      const { deleted, statuses } = yield* MetricsReporter.RecordedReports
      assert.deepInclude(statuses.at(-1), { cur_load: 100, working_request_idxs: [2] })
      assert.deepInclude(deleted[0], { request_idx: 1, status: "Success" })
    }).pipe(Effect.provide(layer))
  })

  const Action = Schema.Literals([
    "create",
    "ping",
    "end",
    "end twice",
    "end with another's key",
    "release",
    "wait 20 s",
    "crash"
  ])

  it.effect.prop(
    "keeps the slot, the load and the reports true in any order of events",
    [Schema.Array(Action)],
    ([actions]) => {
      const { delivered, layer } = testLayer()
      return Effect.gen(function* () {
        const clock = yield* Clock.Clock
        // Sleeping fibers of sessions die of this when the test says so.
        const sleepers = new Set<() => void>()
        const mortal: Clock.Clock = {
          ...clock,
          currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe(),
          currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
          monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
          sleep: (duration) =>
            Effect.raceFirst(
              clock.sleep(duration),
              Effect.callback<never>((resume) => {
                const die = () => resume(Effect.die("crash"))
                sleepers.add(die)
                return Effect.sync(() => void sleepers.delete(die))
              })
            )
        }
        const scope = yield* Scope.make()
        const context = yield* Layer.buildWithScope(layer, scope)
        const sessions = yield* Effect.provide(Session.Sessions, context)
        const { deleted, statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, context)
        let idx = 0
        let held: { readonly session: Session.Session; expires: number } | undefined
        let now = 0
        const ended: Array<string> = []
        const expected = new Map<number, string>()
        const end = () => {
          if (held === undefined) return
          ended.push(held.session.id)
          expected.set(held.session.auth.request_idx ?? -1, "Success")
          held = undefined
        }

        for (const action of actions) {
          switch (action) {
            case "create": {
              idx += 1
              const opened = yield* Effect.exit(sessions.open(auth(idx), reservation)).pipe(
                Effect.provideService(Clock.Clock, mortal)
              )
              assert.strictEqual(Exit.isSuccess(opened), held === undefined)
              if (Exit.isSuccess(opened)) held = { session: opened.value, expires: now + 60 }
              else expected.set(idx, "Rejected")
              break
            }
            case "ping":
              if (held === undefined) break
              yield* sessions.extend(held.session)
              held.expires = now + 60
              break
            case "end":
            case "end twice":
              if (held === undefined) break
              assert.isTrue(yield* sessions.close(held.session, "client"))
              if (action === "end twice") assert.isFalse(yield* sessions.close(held.session, "client"))
              end()
              break
            case "end with another's key":
              if (held === undefined) break
              assert.isTrue(Exit.isFailure(yield* Effect.exit(sessions.find(held.session.id, auth(-1)))))
              break
            case "release":
              assert.deepStrictEqual(yield* sessions.closeAll("consumer"), held === undefined ? [] : [held.session.id])
              end()
              break
            case "crash":
              for (const die of sleepers) die()
              yield* TestClock.adjust(Duration.zero)
              end()
              break
            case "wait 20 s":
              now += 20
              yield* TestClock.adjust("20 seconds")
              if (held !== undefined && held.expires <= now) end()
          }
          yield* TestClock.adjust(Duration.zero)
          const found = held === undefined ? [] : [yield* sessions.find(held.session.id, held.session.auth)]
          assert.strictEqual(found.length, held === undefined ? 0 : 1)
        }
        yield* TestClock.adjust("5 seconds")
        now += 5
        if (held !== undefined && held.expires <= now) end()
        assert.strictEqual(statuses.at(-1)?.cur_load, held === undefined ? 0 : 100)
        yield* Effect.forkChild(Scope.close(scope, Exit.void))
        yield* TestClock.adjust("5 seconds")
        end()
        assert.deepStrictEqual(
          deleted.map(({ request_idx, status }): [number, string] => [request_idx, status]).sort(([a], [b]) => a - b),
          Array.from(expected).sort(([a], [b]) => a - b)
        )
        assert.deepStrictEqual(delivered, ended)
        assert.strictEqual(
          statuses.reduce((sum, status) => sum + status.new_load, 0),
          statuses.reduce((sum, status) => sum + status.cur_perf, 0)
        )
      })
    },
    { arbitrary: { runs: 200 } }
  )
})
