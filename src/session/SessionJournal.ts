/**
 * What must outlive the process: the sessions that are open, and what others are still owed of those that are not.
 *
 * A session is written before its client is answered, and stays until everybody who is owed word of its end has it. So a
 * worker that is killed at any moment, and started again on the same disk, goes on where it was.
 */
import { closeSync, existsSync, fchmodSync, mkdirSync, openSync, renameSync } from "node:fs"
import { dirname, join } from "node:path"
import type { DatabaseSync } from "node:sqlite"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"
import { AuthData } from "../protocol/AuthData.ts"
import { Json } from "../protocol/Json.ts"
import { DeletedRequest } from "../protocol/Report.ts"
import { Reservation } from "../protocol/SessionApi.ts"
import * as Seconds from "../Seconds.ts"

/** A session that is open. `createdAt` is epoch seconds; when it expires stands beside it, because that moves. */
const OpenSession = Schema.TaggedStruct("open", {
  auth: AuthData,
  reservation: Reservation,
  createdAt: Schema.Finite
})

/** A session that has ended, or never began: the callback that its client is owed, and the word that the autoscaler is. */
const Debts = Schema.TaggedStruct("owed", {
  callback: Schema.NullOr(Schema.Struct({ route: Schema.String, payload: Json })),
  deletion: Schema.NullOr(DeletedRequest)
})
export type Debts = typeof Debts.Type

const Entry = Schema.Union([OpenSession, Debts])
/** What stands in the journal under the id of a session. */
export type Entry = typeof Entry.Type

/** An entry with the session's id and, of an open one, when it expires (epoch seconds). */
export interface Row {
  readonly id: string
  readonly entry: Entry
  readonly expiration: number
}

export class SessionJournal extends Context.Service<
  SessionJournal,
  {
    /** All that stands in it, which at the start is what an earlier process left. In the order in which it was first written. */
    readonly rows: Effect.Effect<ReadonlyArray<Row>>
    /** Writes an entry, in place of the session's earlier one. */
    readonly put: (row: Row) => Effect.Effect<void>
    /** The session lives on until `expiration` (epoch seconds). */
    readonly extend: (id: string, expiration: number) => Effect.Effect<void>
    /** Nobody is owed anything any more. */
    readonly remove: (id: string) => Effect.Effect<void>
  }
>()("null-pyworker/SessionJournal") {}

/** A journal that changes are told to. Throws when it cannot be written. */
interface Disk {
  readonly put: (row: Row) => void
  readonly extend: (id: string, expiration: number) => void
  readonly remove: (id: string) => void
  /** Writes all of these in place of all that is there. */
  readonly rewrite: (rows: Iterable<Row>) => void
}

/** The journal's file cannot be used. */
class JournalUnwritable extends Schema.TaggedError<JournalUnwritable>()("JournalUnwritable", { reason: Schema.String }) {}

const onDisk = <A>(work: () => A): Result.Result<A, JournalUnwritable> =>
  Result.try({
    try: work,
    catch: (error) => new JournalUnwritable({ reason: error instanceof Error ? error.message : String(error) })
  })

const inMemoryOnly = ({ reason }: { readonly reason: string }) =>
  Effect.logError("journal not written: sessions are kept in memory only, and are lost with the process", { reason })

const nowhere: Disk = { put: () => {}, extend: () => {}, remove: () => {}, rewrite: () => {} }

/** Seconds before a disk that could not be written is tried again. */
const retryAfter = 10

/** The rows as they should be, and a disk that follows them as well as it can. */
const make = (left: ReadonlyArray<Row>, disk: Disk): SessionJournal["Service"] => {
  // No Map: a table that it has outgrown refers to its successor, with all that was in it then. Once one of these is old, each
  // minor collection takes whatever has come and gone since to be alive.
  const rows: Record<string, Row> = Object.create(null)
  for (const row of left) rows[row.id] = row
  let behindSince: number | undefined

  const fallBehind = Effect.map(Seconds.monotonic, (now) => {
    behindSince = now
  })
  const catchUp = (since: number) =>
    Effect.gen(function* () {
      if ((yield* Seconds.monotonic) < since + retryAfter) return
      yield* Effect.fromResult(onDisk(() => disk.rewrite(Object.values(rows))))
      behindSince = undefined
      yield* Effect.logInfo("journal written again")
    }).pipe(Effect.catch(() => fallBehind))

  const writeOn = (change: () => void) => {
    if (behindSince !== undefined) return catchUp(behindSince)
    const written = onDisk(change)
    return Result.isSuccess(written) ? Effect.void : Effect.andThen(inMemoryOnly(written.failure), fallBehind)
  }

  return {
    rows: Effect.sync(() => Object.values(rows)),
    put: (row) =>
      Effect.suspend(() => {
        rows[row.id] = row
        return writeOn(() => disk.put(row))
      }),
    extend: (id, expiration) =>
      Effect.suspend(() => {
        const row = rows[id]
        if (row === undefined) return Effect.void
        rows[id] = { ...row, expiration }
        return writeOn(() => disk.extend(id, expiration))
      }),
    remove: (id) =>
      Effect.suspend(() => {
        if (rows[id] === undefined) return Effect.void
        delete rows[id]
        return writeOn(() => disk.remove(id))
      })
  }
}

/** In memory: outlives the sessions' layer, not the process. */
export const layerMemory: Layer.Layer<SessionJournal> = Layer.sync(SessionJournal, () => make([], nowhere))

/** Marks a database as ours, in the form that it has now. */
const application = 0x4e50574a
const version = 1

type Sqlite = typeof import("node:sqlite")

const StoredRow = Schema.Struct({ id: Schema.String, entry: Schema.fromJsonString(Entry), expiration: Schema.Finite })
const decodeRow = Schema.decodeUnknownOption(StoredRow)

/** The file is a database, but not one that this version of ours has written. */
class Foreign extends Error {
  override readonly message = "not a journal of this version"
}

// SQLite's write-ahead log keeps every write whole, or undone, wherever the process dies. Nothing waits for the platters: a
// process that is killed loses nothing by it, and what a power cut tears is set aside at the next start.
const connect = ({ DatabaseSync }: Sqlite, file: string) => {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
  const descriptor = openSync(file, "a", 0o600)
  fchmodSync(descriptor, 0o600)
  closeSync(descriptor)
  const db = new DatabaseSync(file)
  try {
    const pragma = (name: string) => Object.values(db.prepare(`PRAGMA ${name}`).get() ?? {})[0]
    // Another worker of this name may still be alive: whoever holds the file first, holds it alone.
    db.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA cache_size = -128")
    if (pragma("schema_version") === 0) {
      db.exec(`
        BEGIN;
        CREATE TABLE session (id TEXT PRIMARY KEY, entry TEXT NOT NULL, expiration REAL NOT NULL) STRICT;
        PRAGMA application_id = ${application};
        PRAGMA user_version = ${version};
        COMMIT
      `)
    }
    if (pragma("application_id") !== application || pragma("user_version") !== version) throw new Foreign()
    if (pragma("quick_check") !== "ok") throw new Foreign()
    const rows = db
      .prepare("SELECT id, entry, expiration FROM session ORDER BY rowid")
      .all()
      .map((row) => decodeRow(row))
    return { db, rows }
  } catch (error) {
    db.close()
    throw error
  }
}

/** SQLite's codes for a file that it can read, but not use: an error in the SQL (another's tables), malformed, no database. */
const unusable = [1, 11, 26]
const isUnusable = (error: unknown): error is Error =>
  error instanceof Foreign || (error instanceof Error && "errcode" in error && unusable.includes(Number(error.errcode)))

// Under one name, so that a disk that keeps breaking files does not fill up with them.
const setAside = (file: string) => {
  for (const suffix of ["", "-wal"]) {
    if (existsSync(file + suffix)) renameSync(file + suffix, `${file}.set-aside${suffix}`)
  }
}

/** Opens the file, or a new one in its place with all that could be saved. Throws when neither can be had. */
const openOrReplace = (sqlite: Sqlite, file: string) => {
  let saved: ReadonlyArray<Row> = []
  let reason = "it has entries that cannot be read"
  try {
    const { db, rows } = connect(sqlite, file)
    saved = rows.flatMap(Option.toArray)
    if (saved.length === rows.length) return { db, left: saved }
    db.close()
  } catch (error) {
    if (!isUnusable(error)) throw error
    reason = error.message
  }
  setAside(file)
  const { db } = connect(sqlite, file)
  diskOf(db).rewrite(saved)
  return { db, left: saved, setAsideFor: reason }
}

const diskOf = (db: DatabaseSync): Disk => {
  const upsert = db.prepare(
    "INSERT INTO session VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET entry = excluded.entry, expiration = excluded.expiration"
  )
  const extend = db.prepare("UPDATE session SET expiration = ? WHERE id = ?")
  const remove = db.prepare("DELETE FROM session WHERE id = ?")
  const put = ({ entry, expiration, id }: Row) => void upsert.run(id, JSON.stringify(entry), expiration)
  return {
    put,
    extend: (id, expiration) => void extend.run(expiration, id),
    remove: (id) => void remove.run(id),
    rewrite: (rows) => {
      db.exec("BEGIN")
      try {
        db.exec("DELETE FROM session")
        for (const row of rows) put(row)
        db.exec("COMMIT")
      } catch (error) {
        if (db.isTransaction) db.exec("ROLLBACK")
        throw error
      }
    }
  }
}

/** In this file. One that is of no use is set aside, and where there can be none the journal is in memory, with an error in the log. */
export const layerFile = (file: string): Layer.Layer<SessionJournal> =>
  Layer.effect(
    SessionJournal,
    Effect.gen(function* () {
      const sqlite = yield* Effect.tryPromise({
        try: () => import("node:sqlite"),
        catch: () => new JournalUnwritable({ reason: "this Node has no SQLite" })
      })
      const opened = yield* Effect.acquireRelease(
        Effect.suspend(() => Effect.fromResult(onDisk(() => openOrReplace(sqlite, file)))),
        ({ db }) => Effect.sync(() => db.close())
      )
      if (opened.setAsideFor !== undefined) {
        yield* Effect.logWarning("journal set aside", { reason: opened.setAsideFor })
      }
      if (opened.left.length > 0) {
        yield* Effect.logInfo("journal read", { entries: opened.left.length })
      }
      return make(opened.left, diskOf(opened.db))
    }).pipe(
      Effect.catch((failure) => Effect.as(inMemoryOnly(failure), make([], nowhere))),
      Effect.annotateLogs({ file })
    )
  )

/** In the directory that `JOURNAL_DIR` or `WORKSPACE_DIR` names, in a file of this worker's; in memory without either. */
export const layer: Layer.Layer<SessionJournal, never, WorkerConfig> = Layer.unwrap(
  Effect.map(WorkerConfig, ({ id, journalDirectory }) =>
    Option.match(journalDirectory, {
      onNone: () => layerMemory,
      onSome: (directory) => layerFile(join(directory, `worker-${id}.sqlite`))
    })
  )
)
