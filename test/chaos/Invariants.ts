/**
 * What must hold of a worker from outside, when answers get lost, processes die and clocks jump: while it goes on, of each
 * session, and at the end, of all that others were told.
 */
import { isDeepStrictEqual } from "node:util"
import type { Json, Note } from "./ControlPlane.ts"

/** At least and at most. */
type Range = readonly [low: number, high: number]

/** Seconds that two looks at the same clock may be apart. */
const precision = 0.05
/** Seconds by which a busy machine may be late. */
const lateness = 2

export interface Reservation {
  readonly lifetime: number
  readonly on_close_route: string | null
  readonly on_close_payload: unknown
}

/** A request that may end a session: whether that was open until then, and how many such requests there were by then. */
export interface Ending {
  readonly belief: Belief
  readonly wasOpen: boolean
  readonly count: number
}

/** What can be known of a session: that it must be open, that it must be over, or neither. Times are epoch seconds. */
export class Belief {
  readonly auth: { readonly request_idx: number; readonly [field: string]: unknown }
  readonly reservation: Reservation
  /** The number of the worker's process that was asked for it. */
  readonly life: number
  /** The answer to its create; "half" where half of the request was sent, and nothing can have come of it. */
  status: number | "pending" | "lost" | "half" = "pending"
  id: string | undefined
  /** Since when it is known to be over, or never to have been. */
  overSince = Infinity
  /** When its end was first asked for. */
  endAskedAt = Infinity
  /** What the worker says of when it expires, by the worker's clock. */
  expiration: Range = [0, Infinity]
  /** When it expires, by ours. */
  dies: Range = [0, Infinity]
  /** It was open, and nothing but its expiry can have ended it since. */
  #intact = false
  #endings = 0
  /** The process in which a request that changes it is under way, or got lost and may come later than those after it. */
  #loose = 0

  constructor(auth: Belief["auth"], reservation: Reservation, life: number) {
    this.auth = auth
    this.reservation = reservation
    this.life = life
  }

  get idx(): number {
    return this.auth.request_idx
  }

  /** It must be open until `at`. */
  surelyOpen(at: number): boolean {
    return this.#intact && at < this.dies[0] - precision
  }

  /** It must be over from `at` on. */
  surelyOver(at: number): boolean {
    return this.overSince <= at || this.dies[1] + lateness < at
  }

  over(since: number): void {
    this.overSince = Math.min(this.overSince, since)
    this.#intact = false
  }

  /** Its create was granted. */
  created(id: string, expiration: number, sent: number, answered: number): void {
    this.status = 201
    this.id = id
    this.expiration = [expiration, expiration]
    this.dies = [sent + this.reservation.lifetime, answered + this.reservation.lifetime]
    this.#intact = this.#endings === 0 && this.overSince === Infinity
  }

  /** This process is about to be asked for its end. */
  ending(at: number, life: number): Ending {
    const wasOpen = this.#intact
    this.endAskedAt = Math.min(this.endAskedAt, at)
    this.#intact = false
    this.#endings += 1
    this.#loose = life
    return { belief: this, wasOpen, count: this.#endings }
  }

  /** Whether nothing else can have ended it when that request was answered. */
  mustHaveEnded({ count, wasOpen }: Ending, answered: number): boolean {
    return wasOpen && count === this.#endings && answered < this.dies[0] - precision
  }

  /** A ping was answered. */
  extended(sent: number, answered: number): void {
    const { lifetime } = this.reservation
    const [low, high] = this.dies
    this.expiration = [
      this.expiration[0] + Math.max(0, sent + lifetime - high),
      this.expiration[1] + Math.max(0, answered + lifetime - low)
    ]
    this.dies = [Math.max(low, sent + lifetime), Math.max(high, answered + lifetime)]
  }

  /** A ping was not answered by this process, and may come to something yet. */
  perhapsExtended(life: number): void {
    this.expiration = [this.expiration[0], Infinity]
    this.dies = [this.dies[0], Infinity]
    this.#loose = life
  }

  /** This process says that it is open, and when it expires. */
  seen(expiration: number, life: number): void {
    this.expiration = [expiration, this.#loose === life ? this.expiration[1] : expiration]
    if (this.#loose !== life) this.#intact = this.overSince === Infinity
  }

  /** The process that had it died, perhaps after its expiry. */
  died(at: number): void {
    if (this.surelyOver(at)) this.over(at)
    if (!this.surelyOpen(at)) this.#intact = false
  }

  /** A process whose clock is `clock` seconds off is started, and may take it over at any moment. */
  inOtherHands(clock: number): void {
    this.dies = [Math.min(this.dies[0], this.expiration[0] - clock), Infinity]
  }

  /**
   * At some moment of `during` a process whose clock is `clock` seconds off took it over; or did not, if it was killed before.
   * It lives for as long as it had left by that clock, and no longer than a lifetime.
   */
  takenOver(during: Range, clock: number, killed: boolean): void {
    const from = (expiration: number, now: number) => now + Math.min(Math.max(expiration - now, 0), this.reservation.lifetime)
    const low = from(this.expiration[0], during[0] + clock)
    const high = from(this.expiration[1], during[1] + clock)
    this.expiration = killed ? [Math.min(low, this.expiration[0]), Math.max(high, this.expiration[1])] : [low, high]
    this.dies = [low - clock, high - clock]
  }

  /** Whether the worker may say that it expires then, given what was known before it was asked. */
  mayExpire(expiration: number, atLeast: number): boolean {
    return expiration >= atLeast - precision && expiration <= this.expiration[1] + precision
  }
}

/** One process of the worker, as its end is judged. */
export interface Life {
  readonly number: number
  readonly startedAt: number
  /** What it was told to take over, and until when that has to be open. */
  readonly restored: Array<{ readonly belief: Belief; readonly until: number }>
  /** When it was told to stop, or killed. */
  readonly goingSince: number
  readonly journalDamaged: boolean
  readonly log: string
}

/** All that there is to judge by. Notes are in the order in which they were received. */
export interface Evidence {
  readonly beliefs: ReadonlyArray<Belief>
  readonly lives: ReadonlyArray<Life>
  readonly reports: ReadonlyArray<Note>
  readonly callbacks: ReadonlyArray<Note>
}

/** A deletion that the autoscaler was told of. */
interface Deletion {
  readonly request: Json
  readonly accepted: boolean
}

const isTo = (path: string) => (note: Note) => note.path.endsWith(path)
const cost = 100

/** Deletions by their `request_idx`, each time that one was told. */
export const deletionsOf = ({ reports }: Pick<Evidence, "reports">): Map<number, Array<Deletion>> => {
  const told = reports
    .filter(isTo("/delete_requests/"))
    .flatMap(({ acceptedAt, body }) =>
      body.requests.map((request: Json): Deletion => ({ request, accepted: acceptedAt !== undefined }))
    )
  return Map.groupBy(told, ({ request }) => request.request_idx)
}

/** Callbacks by the `request_idx` of their session, which is the last part of their route. */
export const callbacksOf = ({ callbacks }: Pick<Evidence, "callbacks">): Map<number, Array<Note>> =>
  Map.groupBy(callbacks, ({ path }) => Number(path.split("/").at(-1)))

const acceptedStatuses = ({ reports }: Evidence, life: number) =>
  reports.filter((note) => note.path === `/${life}/worker_status/` && note.acceptedAt !== undefined)

const sum = (statuses: ReadonlyArray<Note>, field: string) => statuses.reduce((total, { body }) => total + body[field], 0)

/** Sessions that were opened, by all that shows it: the answer, the worker's own word, or the word of their end. */
const granted = ({ beliefs, lives }: Evidence, deletions: Map<number, Array<Deletion>>) => {
  const lines = lives.flatMap(({ log }) => Array.from(log.matchAll(/message="session opened".* request_idx=(\d+)/g)))
  const opened = new Set(lines.map(([, idx]) => Number(idx)))
  const ended = (idx: number) => deletions.get(idx)?.some(({ request }) => request.status === "Success")
  return beliefs.filter(({ idx, status }) => status === 201 || opened.has(idx) || ended(idx))
}

const refused = ({ beliefs }: Evidence, deletions: Map<number, Array<Deletion>>) =>
  beliefs.filter(
    ({ idx, status }) =>
      status === 429 || (status === "lost" && deletions.get(idx)?.some(({ request }) => request.status === "Rejected"))
  )

/** What is owed, and has not arrived. */
export const owed = (evidence: Evidence): ReadonlyArray<string> => {
  const missing: Array<string> = []
  const deletions = deletionsOf(evidence)
  const callbacks = callbacksOf(evidence)
  const sessions = granted(evidence, deletions)
  const refusals = refused(evidence, deletions)
  for (const { idx } of [...sessions, ...refusals]) {
    if (!deletions.get(idx)?.some(({ accepted }) => accepted)) missing.push(`the deletion of #${idx}`)
  }
  for (const { idx, reservation } of sessions) {
    if (reservation.on_close_route === null) continue
    if (!callbacks.get(idx)?.some(({ acceptedAt }) => acceptedAt !== undefined)) missing.push(`the callback of #${idx}`)
  }
  const life = evidence.lives.length
  const statuses = acceptedStatuses(evidence, life)
  const rejected = refusals.filter((belief) => belief.life === life).length * cost
  const load = statuses.at(-1)?.body.cur_load
  if (load !== 0) missing.push(`the report that no load is left: it is ${load}`)
  if (sum(statuses, "rej_load") !== rejected) missing.push(`the rejected load: ${sum(statuses, "rej_load")} of ${rejected}`)
  return missing
}

const judgeDeletions = (evidence: Evidence): ReadonlyArray<string> => {
  const wrong: Array<string> = []
  const deletions = deletionsOf(evidence)
  const sessions = new Set(granted(evidence, deletions))
  for (const belief of evidence.beliefs) {
    const told = (deletions.get(belief.idx) ?? []).map(({ request }) => request)
    const [first] = told
    if (first === undefined) continue
    const text = () => `#${belief.idx} (${belief.status}): ${JSON.stringify(told)}`
    if (!told.every((request) => isDeepStrictEqual(request, first))) wrong.push(`deletions differ: ${text()}`)
    const statuses = sessions.has(belief) ? ["Success"] : belief.status === 429 ? ["Rejected"] : ["Success", "Rejected"]
    const right = statuses.includes(first.status) && first.success === (first.status === "Success")
    if (!right || belief.status === "half" || belief.status === 503) wrong.push(`wrong deletion: ${text()}`)
  }
  for (const { body, path } of evidence.reports) {
    const right = body.mtoken === "the-master-token" && (body.id ?? body.worker_id) === 42
    if (!right) wrong.push(`a report of another worker to ${path}: ${JSON.stringify(body)}`)
    const told = body.requests?.map((request: Json) => request.request_idx) ?? []
    if (new Set(told).size < told.length) wrong.push(`a deletion twice in one report: ${told}`)
  }
  return wrong
}

const isFields = (payload: unknown): payload is object =>
  typeof payload === "object" && payload !== null && !Array.isArray(payload)

const judgeCallbacks = (evidence: Evidence): ReadonlyArray<string> => {
  const callbacks = callbacksOf(evidence)
  return evidence.beliefs.flatMap(({ id, idx, reservation: { on_close_payload: payload }, status }) => {
    const attempts = callbacks.get(idx) ?? []
    if (attempts.length > 0 && status !== 201 && status !== "lost") return [`a callback of #${idx}, which never was`]
    const session_id = id ?? attempts[0]?.key
    const fields = isFields(payload) ? payload : payload === null ? {} : { payload }
    const right = attempts.every(({ body, key }) => key === session_id && isDeepStrictEqual(body, { session_id, ...fields }))
    return right ? [] : [`wrong callbacks of #${idx}, session ${session_id}: ${JSON.stringify(attempts)}`]
  })
}

// Each report has to leave the autoscaler with sums that come out at the load under way.
const balanced = (statuses: ReadonlyArray<Note>) =>
  statuses.every(({ body }, n) => {
    const upToHere = statuses.slice(0, n + 1)
    return (
      sum(upToHere, "new_load") === sum(upToHere, "cur_perf") + body.cur_load &&
      body.cur_load === body.working_request_idxs.length * cost &&
      body.num_requests_working === body.working_request_idxs.length
    )
  })

const judgeLoad = (evidence: Evidence): ReadonlyArray<string> => {
  const refusals = refused(evidence, deletionsOf(evidence))
  return evidence.lives.flatMap(({ goingSince, number, restored }) => {
    const statuses = acceptedStatuses(evidence, number)
    const wrong: Array<string> = []
    const right = (accepted: ReadonlyArray<Note>) =>
      balanced(accepted) && sum(accepted, "rej_load") <= refusals.filter(({ life }) => life === number).length * cost
    // A worker that stops may give up a report in the very moment in which it is answered: then its sums come with the last one.
    const givenUp = statuses.at(-2)
    const without = (givenUp?.acceptedAt ?? 0) < goingSince ? statuses : statuses.filter((status) => status !== givenUp)
    if (!right(statuses) && !right(without)) {
      wrong.push(`process ${number} reported load that does not add up: ${JSON.stringify(statuses.map(({ body }) => body))}`)
    }
    const [first] = statuses
    for (const { belief, until } of restored) {
      if (first === undefined || first.at > Math.min(until, belief.endAskedAt, goingSince)) continue
      if (first.body.working_request_idxs.includes(belief.idx)) continue
      wrong.push(`process ${number} did not report #${belief.idx}, which it had taken over: ${JSON.stringify(first.body)}`)
    }
    return wrong
  })
}

/** Seconds that a worker may take to note that it has been answered. */
const soon = 1

// What was answered comes again only from another process, and only where the one that had the answer went soon after it.
const judgeRepeats = (evidence: Evidence): ReadonlyArray<string> => {
  const { beliefs, callbacks, lives, reports } = evidence
  const lifeAt = (at: number) => lives.findLast(({ startedAt }) => startedAt <= at)
  const inVain = (first: Note, second: Note) => {
    const life = lifeAt(first.acceptedAt ?? Infinity)
    return first.acceptedAt !== undefined && life !== undefined && Math.min(second.at, first.acceptedAt + soon) < life.goingSince
  }
  const repeats = (notes: ReadonlyArray<Note>) =>
    notes.some((first, n) => notes.slice(n + 1).some((second) => inVain(first, second)))
  return beliefs.flatMap(({ idx }) => {
    const deletes = reports.filter(({ body }) => body.requests?.some((request: Json) => request.request_idx === idx))
    const calls = callbacks.filter(({ path }) => path.endsWith(`/closed/${idx}`))
    return [
      ...(repeats(deletes) ? [`the deletion of #${idx} came again, though it had been answered`] : []),
      ...(repeats(calls) ? [`the callback of #${idx} came again, though it had been answered`] : [])
    ]
  })
}

/** What a worker may write in such company: whatever it does, and that others do not answer. */
const expectedLines = [
  /^chaos clock /,
  / level=INFO /,
  / level=WARN .*message="report not delivered"/,
  / level=ERROR .*message="on_close not answered before the worker stopped"/
]
const setAside = / level=WARN .*message="journal set aside"/
const forbiddenLines = / level=FATAL |request crashed|session not restored/

const judgeLogs = ({ lives }: Evidence): ReadonlyArray<string> =>
  lives.flatMap(({ journalDamaged, log, number }) => {
    const expected = journalDamaged ? [...expectedLines, setAside] : expectedLines
    return log
      .split("\n")
      .filter((line) => line !== "" && (forbiddenLines.test(line) || !expected.some((pattern) => pattern.test(line))))
      .map((line) => `process ${number} wrote: ${line}`)
  })

/** What does not hold, once nothing is owed any more. */
export const judge = (evidence: Evidence): ReadonlyArray<string> => [
  ...judgeDeletions(evidence),
  ...judgeCallbacks(evidence),
  ...judgeLoad(evidence),
  ...judgeRepeats(evidence),
  ...judgeLogs(evidence)
]
