/**
 * The worker's load as data: what came in since the last report, what is being worked on, what the autoscaler may forget.
 *
 * Every request enters once, by `begin` or `reject`, and every request that has a `request_idx` leaves once, through
 * `deleting`. The sums are taken whole for a report and given back if it did not arrive, so that nothing which is booked
 * meanwhile is lost (wire section 8, "Ours").
 */
import type * as Effect from "effect/Effect"
import type { DeletedRequest, RequestStatus } from "../protocol/Report.ts"

/**
 * Work to be booked. `workload` is in workload units, times are epoch seconds. A request in a session adds to the
 * sums only: to the autoscaler it is part of the session, whose `request_idx` it bears.
 */
export interface Work {
  readonly kind: "request" | "session" | "request in session"
  readonly requestIdx: number | undefined
  readonly workload: number
  readonly enteredQueueAt: number
  /** Later than the other where the work had to wait its turn; 0 where its turn never came. */
  startedAt: number
}

/** A request that the autoscaler may forget, and what to do once it has been told. */
export interface Deletion {
  readonly request: DeletedRequest
  readonly told: Effect.Effect<void>
}

/** Sums of workload since the last report that arrived. */
export interface Sums {
  readonly received: number
  readonly cancelled: number
  readonly rejected: number
  readonly served: number
}

export interface LoadBook {
  sums: Sums
  requestsReceived: number
  readonly working: Set<Work>
  /** Those of the working that are no sessions: few, however many sessions are open. */
  readonly queued: Set<Work>
  readonly deleting: Array<Deletion>
}

const nothing: Sums = { received: 0, cancelled: 0, rejected: 0, served: 0 }

export const empty = (): LoadBook => ({ sums: nothing, requestsReceived: 0, working: new Set(), queued: new Set(), deleting: [] })

const add = (a: Sums, b: Partial<Sums>): Sums => ({
  received: a.received + (b.received ?? 0),
  cancelled: a.cancelled + (b.cancelled ?? 0),
  rejected: a.rejected + (b.rejected ?? 0),
  served: a.served + (b.served ?? 0)
})

/** The work is received and under way. */
export const begin = (book: LoadBook, work: Work): void => {
  book.sums = add(book.sums, { received: work.workload })
  if (work.kind === "request in session") return
  book.requestsReceived += 1
  book.working.add(work)
  if (work.kind === "request") book.queued.add(work)
}

/** Work under way has ended. */
export const finish = (book: LoadBook, work: Work, status: "Success" | "Cancelled" | "Error"): void => {
  book.working.delete(work)
  book.queued.delete(work)
  if (status === "Success") book.sums = add(book.sums, { served: work.workload })
  if (status === "Cancelled") book.sums = add(book.sums, { cancelled: work.workload })
}

/** The work was refused for want of room. */
export const reject = (book: LoadBook, work: Work): void => {
  book.sums = add(book.sums, { rejected: work.workload })
  if (work.kind !== "request in session") book.requestsReceived += 1
}

/**
 * What the autoscaler is to be told of work that has ended at `now` (epoch seconds, 0 where it never began). Without a
 * `request_idx` of its own the autoscaler never knew of the work, so there is nothing for it to forget.
 */
export const deletion = (work: Omit<Work, "workload">, status: RequestStatus, now: number): DeletedRequest | null => {
  if (work.requestIdx === undefined || work.kind === "request in session") return null
  return {
    request_idx: work.requestIdx,
    // A client that went away got what it wanted: the platform counts a cancelled request as a success.
    success: status === "Success" || status === "Cancelled",
    status,
    entered_queue_at: work.enteredQueueAt,
    work_started_at: work.startedAt,
    work_completed_at: now
  }
}

/** Deletions that wait at most: an hour's without an autoscaler, at 27 requests a second. */
const mostDeleting = 100_000

/** Has a deletion wait for its report. Where too many wait already, the oldest hundredth is given up, and given back. */
export const forget = (book: LoadBook, deletion: Deletion): ReadonlyArray<Deletion> => {
  book.deleting.push(deletion)
  return book.deleting.length > mostDeleting ? book.deleting.splice(0, mostDeleting / 100) : []
}

/** Takes the sums out of the book, for a report. */
export const takeSums = (book: LoadBook): Sums => {
  const sums = book.sums
  book.sums = nothing
  return sums
}

/** Puts back sums whose report did not arrive. */
export const giveBack = (book: LoadBook, sums: Sums): void => {
  book.sums = add(book.sums, sums)
}

// Summed anew each time, so that no rounding error stays behind.
const sum = (works: Iterable<Work>): number => {
  let load = 0
  for (const { workload } of works) load += workload
  return load
}

/** The load under way, sessions included. */
export const currentLoad = (book: LoadBook): number => sum(book.working)

/** The load of the requests under way that are no sessions: what a new request has to wait for. */
export const queuedLoad = (book: LoadBook): number => sum(book.queued)
