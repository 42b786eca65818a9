import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { DatabaseSync } from "node:sqlite"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
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
const reservation = { lifetime: 60, on_close_route: "http://user/closed", on_close_payload: { job: 7 } }

/** A process that works on a journal until it dies, at once or before or after its n-th write: nothing it does then counts. */
const life = Effect.fnUntraced(function* (
  journal: SessionJournal.SessionJournal["Service"],
  receiver: (callback: OnClose.Callback) => "answers" | "is silent" = () => "answers",
  writesToLive = Infinity,
  dies: "before" | "after" = "before"
) {
  let alive = true
  let writes = 0
  const mortal = (write: Effect.Effect<void>) =>
    Effect.suspend(() => {
      writes += 1
      if (writes === writesToLive && dies === "before") alive = false
      const written = alive ? write : Effect.void
      if (writes === writesToLive) alive = false
      return written
    })
  const deliver = (callback: OnClose.Callback, settled: Effect.Effect<void>) =>
    Effect.suspend(() => (alive && receiver(callback) === "answers" ? settled : Effect.void))
  const layer = Session.layer.pipe(
    Layer.provide(SessionSlot.layerCapacity(1)),
    Layer.provide(Layer.succeed(OnClose.OnClose, { deliver })),
    Layer.provide(
      Layer.succeed(SessionJournal.SessionJournal, {
        rows: journal.rows,
        put: (row) => mortal(journal.put(row)),
        extend: (id, expiration) => mortal(journal.extend(id, expiration)),
        remove: (id) => mortal(journal.remove(id))
      })
    ),
    Layer.provideMerge(MetricsReporter.layerTest)
  )
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(layer, scope)
  const { deleted, statuses } = yield* Effect.provide(MetricsReporter.RecordedReports, context)
  return {
    sessions: yield* Effect.provide(Session.Sessions, context),
    statuses,
    alive: () => alive,
    /** Kills it, and says what the autoscaler had been told by then. */
    kill: Effect.suspend(() => {
      alive = false
      return Effect.succeed([...deleted])
    }),
    stop: Effect.gen(function* () {
      yield* Effect.forkDetach(Scope.close(scope, Exit.void))
      yield* TestClock.adjust("5 seconds")
      return [...deleted]
    })
  }
})

const journalInMemory = Effect.provide(SessionJournal.SessionJournal, SessionJournal.layerMemory)

describe("a restart", () => {
  it.effect("finds the session that was open: its id, its key, its expiry, its slot, its load", () =>
    Effect.gen(function* () {
      const journal = yield* journalInMemory
      const first = yield* life(journal)
      const { id } = yield* first.sessions.open(auth(1), reservation)
      yield* TestClock.adjust("20 seconds")
      yield* first.sessions.extend(yield* first.sessions.find(id, auth(1)))
      yield* first.kill
      yield* TestClock.adjust("10 seconds")
      const second = yield* life(journal)
      const session = yield* second.sessions.find(id, auth(1))
      assert.deepInclude(session, { id, auth: auth(1), reservation, createdAt: 0, expiration: 80 })
      assert.strictEqual((yield* Effect.flip(second.sessions.find(id, auth(2))))._tag, "SessionAuthRefused")
      assert.strictEqual((yield* Effect.flip(second.sessions.open(auth(2), reservation)))._tag, "SlotOccupied")
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude(second.statuses.at(-1), { cur_load: 100, new_load: 100, working_request_idxs: [1] })
      yield* TestClock.adjust("47999 millis")
      yield* second.sessions.find(id, auth(1))
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* Effect.flip(second.sessions.find(id, auth(1))))._tag, "SessionUnknown")
    })
  )

  it.effect("ends a session whose life ran out meanwhile, as expired, with all that is owed of it", () =>
    Effect.gen(function* () {
      const journal = yield* journalInMemory
      const first = yield* life(journal)
      const { id } = yield* first.sessions.open(auth(1), reservation)
      yield* first.kill
      yield* TestClock.adjust("1 hour")
      const called: Array<string> = []
      const second = yield* life(journal, ({ sessionId }) => (called.push(sessionId) > 0 ? "answers" : "is silent"))
      yield* TestClock.adjust("0 millis")
      yield* second.sessions.open(auth(2), reservation)
      assert.deepStrictEqual(called, [id])
      yield* TestClock.adjust("2 seconds")
      assert.deepInclude((yield* second.kill)[0], { request_idx: 1, status: "Success", work_completed_at: 3600 })
    })
  )

  it.effect("gives nobody more than a lifetime, whatever the clock did", () =>
    Effect.gen(function* () {
      const journal = yield* journalInMemory
      yield* TestClock.setTime(1e9)
      const first = yield* life(journal)
      const { id } = yield* first.sessions.open(auth(1), reservation)
      yield* first.kill
      yield* TestClock.setTime(1e6)
      const second = yield* life(journal)
      assert.strictEqual((yield* second.sessions.find(id, auth(1))).expiration, 1060)
    })
  )

  it.effect("ends what there is no slot for any more", () =>
    Effect.gen(function* () {
      const journal = yield* journalInMemory
      const entry = { _tag: "open", auth: auth(1), reservation, createdAt: 0 } as const
      yield* journal.put({ id: "a", entry, expiration: 60 })
      yield* journal.put({ id: "b", entry: { ...entry, auth: auth(2) }, expiration: 60 })
      const called: Array<string> = []
      const { kill, sessions } = yield* life(journal, ({ sessionId }) => (called.push(sessionId) > 0 ? "answers" : "is silent"))
      yield* sessions.find("a", auth(1))
      yield* TestClock.adjust("2 seconds")
      assert.deepStrictEqual(called, ["b"])
      assert.deepStrictEqual(
        (yield* kill).map(({ request_idx }) => request_idx),
        [2]
      )
    })
  )

  const Step = Schema.Struct({
    does: Schema.Literals(["create", "ping", "end", "release", "wait 20 s", "wait a tick", "die"]),
    receiver: Schema.Literals(["answers", "is silent"]),
    /** How many writes the life that this step may begin has, and whether it dies of the last before or after it is done. */
    writes: Schema.Literals([1, 2, 3, 4, 5, 8, 13]),
    dies: Schema.Literals(["before", "after"])
  })

  it.effect.prop(
    "loses nothing, wherever the processes before died",
    [Schema.Array(Step)],
    ([steps]) =>
      Effect.gen(function* () {
        const journal = yield* journalInMemory
        let receiver: "answers" | "is silent" = "answers"
        const called: Array<string> = []
        const receive = ({ sessionId }: OnClose.Callback) => {
          if (receiver === "answers") called.push(sessionId)
          return receiver
        }
        let now = yield* life(journal, receive)
        const told: Array<readonly [number, string]> = []
        const created: Array<Session.Session> = []
        const refused: Array<number> = []
        let idx = 0

        for (const { dies, does, receiver: next, writes } of steps) {
          receiver = next
          if (does === "create") {
            const opened = yield* Effect.exit(now.sessions.open(auth(++idx), reservation))
            // What a client has no answer to was never promised.
            if (now.alive()) Exit.isSuccess(opened) ? created.push(opened.value) : refused.push(idx)
          }
          const [held] = yield* Effect.filter(created, ({ auth, id }) =>
            Effect.map(Effect.exit(now.sessions.find(id, auth)), Exit.isSuccess)
          )
          if (does === "ping" && held !== undefined) yield* now.sessions.extend(held)
          if (does === "end" && held !== undefined) yield* now.sessions.close(held, "client")
          if (does === "release") yield* now.sessions.closeAll("consumer")
          if (does === "wait 20 s") yield* TestClock.adjust("20 seconds")
          if (does === "wait a tick") yield* TestClock.adjust("0 millis")
          if (does === "die" || !now.alive()) {
            told.push(...(yield* now.kill).map((request) => [request.request_idx, JSON.stringify(request)] as const))
            now = yield* life(journal, receive, writes, dies)
          }
        }
        told.push(...(yield* now.kill).map((request) => [request.request_idx, JSON.stringify(request)] as const))

        // The last life has a faithful receiver and all the time it needs.
        receiver = "answers"
        now = yield* life(journal, receive)
        yield* TestClock.adjust("2 minutes")
        told.push(...(yield* now.stop).map((request) => [request.request_idx, JSON.stringify(request)] as const))
        assert.deepStrictEqual(yield* journal.rows, [])
        for (const { auth, id } of created) {
          assert.include(called, id)
          assert.strictEqual(new Set(told.filter(([idx]) => idx === auth.request_idx).map(([, content]) => content)).size, 1)
        }
        for (const idx of refused) assert.isTrue(told.some(([other, content]) => other === idx && content.includes("Rejected")))
      }),
    { arbitrary: { runs: 300 } }
  )
})

describe("the file", () => {
  const withFile = <A>(use: (file: string) => Effect.Effect<A, unknown, Scope.Scope>) =>
    Effect.acquireUseRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "journal-"))),
      (folder) => Effect.scoped(use(join(folder, "deep", "worker-1.sqlite"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true }))
    )

  /** Opens the journal for as long as `use` takes, as a process of its own would, and says what was logged. */
  const opened = <A>(file: string, use: (journal: SessionJournal.SessionJournal["Service"]) => Effect.Effect<A>) =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => void log.push(`${logLevel}: ${[message].flat()[0]}`))
      const result = yield* Effect.flatMap(SessionJournal.SessionJournal, use).pipe(
        Effect.provide(SessionJournal.layerFile(file)),
        Effect.provide(Logger.layer([logger]))
      )
      return { log, result }
    })

  const row = (id: string, expiration = 60): SessionJournal.Row => ({
    id,
    entry: { _tag: "open", auth: { ...auth(1), more: ["é\ud800", null] }, reservation, createdAt: 0.1 },
    expiration
  })
  const owed: SessionJournal.Debts = { _tag: "owed", callback: { route: "http://user/closed", payload: null }, deletion: null }
  const edit = (file: string, statement: string) => {
    const db = new DatabaseSync(file)
    db.exec(statement)
    db.close()
  }
  const rows = (journal: SessionJournal.SessionJournal["Service"]) => journal.rows
  const writeTwo = (journal: SessionJournal.SessionJournal["Service"]) =>
    Effect.andThen(journal.put(row("a")), journal.put(row("b")))

  it.effect("keeps what was put, as it was last, in the order of its first time", () =>
    withFile((file) =>
      Effect.gen(function* () {
        yield* opened(file, (journal) =>
          Effect.gen(function* () {
            yield* writeTwo(journal)
            yield* journal.put(row("c"))
            yield* journal.extend("b", 99.5)
            yield* journal.extend("unknown", 1)
            yield* journal.put({ id: "a", entry: owed, expiration: 0 })
            yield* journal.remove("c")
          })
        )
        const { log, result } = yield* opened(file, rows)
        assert.deepStrictEqual(result, [{ id: "a", entry: owed, expiration: 0 }, row("b", 99.5)])
        assert.deepStrictEqual(log, ["Info: journal read"])
      })
    )
  )

  it.effect("is its owner's alone to read", () =>
    withFile((file) =>
      opened(file, (journal) =>
        Effect.gen(function* () {
          yield* writeTwo(journal)
          for (const part of [file, `${file}-wal`]) assert.strictEqual(statSync(part).mode & 0o777, 0o600)
          assert.strictEqual(statSync(join(file, "..")).mode & 0o777, 0o700)
        })
      )
    )
  )

  it.effect("is one worker's: a second one goes on in memory and does not touch it", () =>
    withFile((file) =>
      opened(file, (journal) =>
        Effect.gen(function* () {
          yield* writeTwo(journal)
          const second = yield* opened(file, (other) => Effect.andThen(other.remove("a"), rows(other)))
          assert.deepStrictEqual(second.result, [])
          assert.strictEqual(second.log.length, 1)
          assert.match(second.log[0] ?? "", /^Error: .*in memory only/)
          assert.strictEqual((yield* journal.rows).length, 2)
        })
      )
    )
  )

  it.effect("that is of no use is set aside with a warning, and a new one is begun", () =>
    withFile((file) =>
      Effect.gen(function* () {
        const breakings: ReadonlyArray<() => void> = [
          () => writeFileSync(file, "no database at all, but long enough to look like one".repeat(100)),
          () => truncateSync(file, 5000),
          () => {
            const bytes = readFileSync(file)
            bytes.fill(0xff, 4096, 6000)
            writeFileSync(file, bytes)
          },
          () => {
            rmSync(file)
            edit(file, "CREATE TABLE session (id TEXT, name TEXT)")
          },
          () => edit(file, "PRAGMA user_version = 999"),
          () => edit(file, "DROP TABLE session")
        ]
        for (const breakIt of breakings) {
          yield* opened(file, writeTwo)
          breakIt()
          const { log, result } = yield* opened(file, (journal) => Effect.andThen(journal.put(row("new")), rows(journal)))
          assert.deepStrictEqual([log, result], [["Warn: journal set aside"], [row("new")]], String(breakIt))
          assert.deepStrictEqual((yield* opened(file, rows)).result, [row("new")])
          assert.isTrue(statSync(`${file}.set-aside`).isFile())
        }
      })
    )
  )

  it.effect("gives what it still has when some of it cannot be read", () =>
    withFile((file) =>
      Effect.gen(function* () {
        yield* opened(file, writeTwo)
        edit(file, `UPDATE session SET entry = '{"_tag":"open"' WHERE id = 'a'`)
        const { log, result } = yield* opened(file, rows)
        assert.deepStrictEqual([log, result], [["Warn: journal set aside", "Info: journal read"], [row("b")]])
      })
    )
  )

  it.effect.prop(
    "never stops the worker, wherever it is torn",
    [Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 40_000 })), Schema.Boolean],
    ([at, cut]) =>
      withFile((file) =>
        Effect.gen(function* () {
          yield* opened(file, (journal) => Effect.forEach(Array(20).keys(), (n) => journal.put(row(`${n}`)), { discard: true }))
          const bytes = readFileSync(file)
          if (cut) truncateSync(file, at % bytes.length)
          else writeFileSync(file, bytes.fill(at % 256, at % bytes.length, Math.min((at % bytes.length) + 64, bytes.length)))
          const { result } = yield* opened(file, (journal) => Effect.andThen(journal.put(row("new")), rows(journal)))
          assert.include(
            result.map(({ id }) => id),
            "new"
          )
          assert.isAtMost(result.length, 21)
        })
      ),
    { arbitrary: { runs: 100 } }
  )

  it.effect("that cannot be had leaves the worker with its memory, and one error in the log", () =>
    withFile((file) =>
      Effect.gen(function* () {
        writeFileSync(join(file, "..", "..", "no-folder"), "")
        const { log, result } = yield* opened(join(file, "..", "..", "no-folder", "x.sqlite"), (journal) =>
          Effect.andThen(writeTwo(journal), rows(journal))
        )
        assert.strictEqual(result.length, 2)
        assert.strictEqual(log.length, 1)
        assert.match(log[0] ?? "", /^Error: .*in memory only/)
      })
    )
  )
})
