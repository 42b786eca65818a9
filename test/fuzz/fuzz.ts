/**
 * Sends a worker a hundred thousand requests that nobody should send, and holds it to its word: each is answered, in JSON, with
 * what was wrong with it, and a request that is refused changes nothing.
 *
 *   node test/fuzz/fuzz.ts [--requests 100000] [--seed S] [--only INDEX | --only FROM-TO] [--worker FILE]
 *
 * Blocks of a thousand go in turn to a worker that asks for no signature and to one that does. What a request is depends on the
 * seed and its index alone.
 */
import { generateKeyPairSync, randomInt, sign } from "node:crypto"
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { isDeepStrictEqual, parseArgs } from "node:util"
import { signedMessage } from "../../src/protocol/AuthData.ts"
import { command, eventually, listen, startReadyWorker } from "../e2e/harness.ts"
import { type Answer, connect, isLast, type Lane, makeLane, type Outcome } from "./connection.ts"
import { keptAuth, mebibyte, type Port, type Request, render, requests } from "./requests.ts"

const { values: given } = parseArgs({
  options: {
    requests: { type: "string", default: "100000" },
    seed: { type: "string", default: String(randomInt(2 ** 31)) },
    only: { type: "string" },
    worker: { type: "string", default: command }
  }
})
const seed = Number(given.seed)

/** Requests between two looks at the worker's state, and requests that are made at once. */
const block = 1000
const batch = 50
const lanes = 8
const answerWithin = 5000
/** How long a request that is not whole may go unanswered before nothing more is sent. */
const patience = 60
const reportedWithin = 3000
const mostMemory = 400 * 2 ** 20
const mostKindsOfViolation = 10

// biome-ignore lint/suspicious/noExplicitAny: bodies off the wire, looked at field by field
type Json = any

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

// What is counted

interface Row {
  requests: number
  readonly classes: Map<string, number>
  slowest: number
}
const rows = new Map<string, Row>()
const statuses = new Map<string, number>()
const counts = { opened: 0, noRoom: 0, unsigned: 0, released: 0, keptAgain: 0 }
let violations = 0
const kindsOfViolation = new Set<string>()

const increment = (map: Map<string, number>, key: string) => map.set(key, (map.get(key) ?? 0) + 1)

const count = ({ port, route }: Request, outcome: Outcome, milliseconds = 0) => {
  const name = `${port} ${route}`
  const row = rows.get(name) ?? { requests: 0, classes: new Map(), slowest: 0 }
  rows.set(name, row)
  row.requests += 1
  const status = typeof outcome === "string" ? "none" : String(outcome.status)
  increment(statuses, status)
  increment(row.classes, status === "none" ? status : `${status[0]}xx`)
  row.slowest = Math.max(row.slowest, milliseconds)
}

/** Prints the first violation of each kind, and ends the run when there are too many. */
const violated = (what: string, where: string, details = "", kind = what) => {
  violations += 1
  if (kindsOfViolation.has(kind)) return
  kindsOfViolation.add(kind)
  console.log(`\nVIOLATION: ${what}\n  replay: --seed ${seed} --only ${where}\n${details}`)
}
const isHopeless = () => kindsOfViolation.size >= mostKindsOfViolation

// A worker, and the session that is open in it all the time

interface Kept {
  readonly id: string
  /** What `/session/get` said of it last. */
  state: Json
  /** A ping that extends it was answered since. */
  pinged: boolean
}

const temporaryDirectory = () => {
  const path = mkdtempSync(join(tmpdir(), "null-pyworker-fuzz-"))
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) }
}

type Worker = Awaited<ReturnType<typeof startReadyWorker>>
type Autoscaler = Awaited<ReturnType<typeof listen>>

const makeWorld = (signed: boolean, signature: string, worker: Worker, autoscaler: Autoscaler) => {
  const portOf = (url: string) => Number(new URL(url).port)
  return {
    signed,
    worker,
    autoscaler,
    ports: { public: worker.port, plain: portOf(worker.plain), control: portOf(worker.control) } satisfies Record<Port, number>,
    auth: { ...keptAuth, signature, url: worker.url },
    texts: { signature, url: worker.url, callback: `${autoscaler.url}/closed` },
    lanes: Array.from({ length: lanes }, makeLane),
    kept: { id: "", state: undefined, pinged: false } as Kept,
    /** Settles once there is a kept session again. */
    keeping: Promise.resolve(),
    /** Sessions that were answered to a request. */
    opened: new Set<string>(),
    /** Sessions that a valid `/release` has closed. */
    released: new Set<string>(),
    /** What has to have been reported when all is over. */
    books: { new_load: 0, rej_load: 0, Success: 0, Rejected: 0, callbacks: 0 },
    /** Something unforeseen has ended the run, and what still comes in is its consequence. */
    isOver: false,
    socketsAtFirst: openSockets(worker.process.pid)
  }
}
type World = ReturnType<typeof makeWorld>

interface JsonAnswer {
  readonly status: number
  readonly body: Json
}

const ask = async (world: World, lane: Lane, target: string, body: unknown): Promise<JsonAnswer> => {
  const text = Buffer.from(JSON.stringify(body))
  const head = Buffer.from(`POST ${target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${text.length}\r\n\r\n`)
  const outcome = await lane.exchange(world.ports.public, Buffer.concat([head, text]), false, answerWithin)
  if (typeof outcome === "string") throw new Error(`${target}: ${outcome}`)
  return { status: outcome.status, body: JSON.parse(outcome.body.toString()) }
}

/** Books what an answer to `/session/create` makes due to the autoscaler and to the callback's receiver. */
const book = ({ books, opened, texts }: World, { body, status }: JsonAnswer, { auth_data, payload }: Json) => {
  if (status === 201) opened.add(body.session_id)
  books[status === 201 ? "new_load" : "rej_load"] += Number(auth_data.cost ?? 100)
  if (auth_data.request_idx !== undefined) books[status === 201 ? "Success" : "Rejected"] += 1
  if (status === 201 && payload.on_close_route === texts.callback) books.callbacks += 1
}

const create = async (world: World, lane: Lane, payload: object) => {
  const body = { auth_data: world.auth, payload }
  const answer = await ask(world, lane, "/session/create", body)
  if (answer.status === 201 || answer.status === 429) book(world, answer, body)
  return answer
}

const keyOf = (world: World) => ({ session_id: world.kept.id, session_auth: world.auth })

/** Opens the session that is to stay open. */
const keep = async (world: World) => {
  const lane = makeLane()
  const lifetime = world.signed ? 3600 : 3_000_000 // the latter is more than a timer of Node's can wait
  const payload = { lifetime, on_close_route: null, on_close_payload: { kept: ["as", "it", "is", 1.5] } }
  world.kept = await eventually("a kept session", async () => {
    const { body, status } = await create(world, lane, payload)
    if (status !== 201) return false
    const id: string = body.session_id
    const seen = await ask(world, lane, "/session/get", { session_id: id, session_auth: world.auth })
    // A release that was under way may have closed it at once.
    return seen.status === 200 && !world.released.has(id) && { id, state: seen.body, pinged: false }
  })
  lane.close()
}

/** A request has validly closed the kept session. */
const lost = (world: World, id: string) => {
  if (id !== world.kept.id) return
  counts.keptAgain += 1
  world.kept = { ...world.kept, id: "" }
  world.keeping = keep(world)
  // Whoever waits for it fails, and the run with it.
  world.keeping.catch(() => {})
}

/** Whether something becomes true within a second: answers on several connections may be read in another order than they were sent. */
const soon = async (look: () => boolean) => {
  const deadline = Date.now() + 1000
  while (!look()) {
    if (Date.now() > deadline) return false
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  return true
}

// What an answer has to be

const sameJson = (a: unknown, b: unknown) => isDeepStrictEqual(JSON.parse(JSON.stringify(a)), JSON.parse(JSON.stringify(b)))

const isTooDeep = (value: unknown, depth = 64): boolean =>
  typeof value === "object" && value !== null && (depth === 0 || Object.values(value).some((item) => isTooDeep(item, depth - 1)))

const parsed = (bytes: Buffer): { readonly json: Json } | undefined => {
  try {
    return { json: JSON.parse(new TextDecoder().decode(bytes)) }
  } catch {
    return undefined
  }
}

interface Sent {
  readonly asked: Request
  /** The body, where it is JSON. */
  readonly body: { readonly json: Json } | undefined
  readonly isTooLong: boolean
  /** The kept session when it was sent. */
  readonly kept: Kept
}

const isJsonRoute = (route: string) => route.startsWith("/session/") || route === "/ping"

/** What is due to a request that reached its route whole. */
const due = (world: World, { asked, body, isTooLong, kept }: Sent): ReadonlyArray<number> | undefined => {
  if (asked.breakage !== undefined) return asked.breakage.statuses
  if (asked.statuses !== undefined) return asked.statuses
  const isThere = asked.method === "POST" && asked.target === asked.route
  if (!isThere || !isJsonRoute(asked.route)) return
  if (isTooLong) return [413]
  const json = body?.json
  if (!isObject(json) || isTooDeep(json)) return [422]
  if (asked.route === "/ping") return isPing(world, json, kept) ? [200, 422] : [401, 410, 422]
  if (asked.route === "/session/create") return isSigned(world, json) ? [201, 422, 429] : [401, 422]
  const { session_id, session_auth = null } = json
  if (typeof session_id !== "string" || session_id === "") return [422]
  if (session_auth !== null && !isObject(session_auth)) return [422]
  if (session_id !== kept.id) return asked.route === "/session/health" ? [200, 422] : [400, 422]
  // A number that is none in JSON is refused wherever it stands.
  return sameJson(session_auth, world.auth) ? [200] : [401, 422]
}

const isSigned = (world: World, { auth_data }: Record<string, unknown>) => {
  if (!isObject(auth_data) || typeof auth_data.url !== "string") return false
  return !world.signed || (auth_data.url === world.auth.url && isSignature(world, auth_data.signature))
}

// Node reads base64 leniently, so that other texts may be the same signature.
const isSignature = (world: World, text: unknown) =>
  typeof text === "string" && Buffer.from(text, "base64").equals(Buffer.from(world.auth.signature, "base64"))

const isPing = (world: World, json: Record<string, unknown>, kept: Kept) =>
  isSigned(world, json) &&
  isObject(json.payload) &&
  ((json.session_id ?? null) === null || (json.session_id === kept.id && sameJson(json.auth_data, world.auth)))

/** What is wrong with an answer, whatever was asked. */
const misformed = (isHead: boolean, { body, headers, status }: Answer) => {
  if (status < 200 || status >= 500) return `status ${status}`
  if (!headers.get("content-type")?.startsWith("application/json")) return `content-type ${headers.get("content-type")}`
  if (isHead) return
  const json = parsed(body)?.json
  if (!isObject(json)) return "the answer is no JSON object"
  if (status >= 400 && (typeof json.error !== "string" || json.error === "")) return "no error in the answer"
}

const parentOf = (name: string) => name.slice(0, Math.max(name.lastIndexOf("."), 0))

/** Whether a 422 says which field is wrong, where it is one. */
const namesField = ({ asked, body }: Sent, answer: Json) => {
  const json = body?.json
  if (!isObject(json)) return true
  if (isTooDeep(json)) return answer.error.includes("nested")
  if (asked.tampered.length === 0) return Object.keys(answer).some((key) => key !== "error")
  return asked.tampered.flatMap((name) => [name, parentOf(name)]).some((name) => name !== "" && answer.error.includes(name))
}

/** What is wrong with the answer to this request. */
const wrong = async (world: World, sent: Sent, answer: Answer) => {
  const { asked, body, kept } = sent
  const isHead = asked.method === "HEAD"
  const bad = misformed(isHead, answer)
  if (bad !== undefined || isHead) return bad
  const json = parsed(answer.body)?.json
  if (answer.status === 422 && asked.breakage === undefined && !namesField(sent, json)) return "the answer names no field"
  const expected = due(world, sent)
  const isHealth = answer.status === 200 && asked.route === "/session/health" && asked.breakage === undefined
  const isDue = expected === undefined || expected.includes(answer.status)
  const isTrue = !isHealth || json.ok === (body?.json?.session_id === kept.id)
  if (isDue && isTrue) return
  // Another request may have closed the kept session meanwhile.
  const isGone = [400, 410].includes(answer.status) || json.ok === false
  if (isGone && (await soon(() => world.kept.id !== kept.id))) return
  return isDue ? "that session is not what health says" : `status ${answer.status} instead of ${expected?.join(" or ")}`
}

/** Takes note of what a request has changed, and undoes it. */
const follow = async (world: World, lane: Lane, { asked, body, kept }: Sent, answer: Answer) => {
  const json = parsed(answer.body)?.json
  const bodyJson = body?.json
  if (answer.status === 201 || answer.status === 429) book(world, { status: answer.status, body: json }, bodyJson)
  if (answer.status === 401 && asked.route === "/session/create") counts.unsigned += 1
  if (answer.status === 429) counts.noRoom += 1
  if (answer.status === 200 && json?.result?.ok === true) {
    if (bodyJson.session_id === kept.id) kept.pinged = true
    // A ping outside of a session is work of its own, of no load.
    else if (bodyJson.auth_data.request_idx !== undefined) world.books.Success += 1
  }
  if (answer.status === 200 && json?.ended === true) lost(world, json.removed_session)
  if (answer.status === 200 && json?.released === true) {
    counts.released += 1
    for (const id of json.session_ids) {
      world.released.add(id)
      lost(world, id)
      if (!(await soon(() => world.opened.has(id)))) return `session ${id} was open, and nobody knows of it`
    }
  }
  if (answer.status !== 201) return
  counts.opened += 1
  const key = { session_id: json.session_id, session_auth: bodyJson.auth_data }
  const seen = await ask(world, lane, "/session/get", key)
  const ended = await ask(world, lane, "/session/end", key)
  if (ended.status === 200 && sameJson(seen.body.auth_data, key.session_auth)) return
  const isOver = json.expiration <= Date.now() / 1000 || (await soon(() => world.released.has(key.session_id)))
  if (ended.status === 400 && isOver) return
  return `the session that it opened is not what it was to be: ${JSON.stringify(seen)}, end: ${JSON.stringify(ended)}`
}

// Sending

const shown = (text: string) => (text.length > 2000 ? `${text.slice(0, 2000)}… (${text.length} bytes)` : text)

const describe = ({ asked }: Sent, wire: Buffer, outcome: Outcome) => {
  const what = asked.breakage === undefined ? asked.kind : `${asked.kind}: ${asked.breakage.what}`
  const answered =
    typeof outcome === "string"
      ? outcome
      : `${outcome.status} ${JSON.stringify(Object.fromEntries(outcome.headers))} ${shown(outcome.body.toString())}`
  return `  ${what}, to the ${asked.port} port, ${asked.route}:\n${textOf(wire)}\n  answer: ${answered}\n`
}

const textOf = (wire: Buffer) => shown(JSON.stringify(wire.toString("latin1")))

interface Answered {
  readonly outcome: Outcome
  /** Whether this should have been an answer. */
  readonly isDue: boolean
}

/** All answers to a request that may be no HTTP, on a connection of its own, up to the connection's end. */
const exchangeBroken = async (port: number, isHead: boolean, wire: Buffer, answersDue: number) => {
  const connection = await connect(port)
  connection.send(wire)
  const answers: Array<Answered> = []
  let isDue = answersDue > 0
  let outcome = await connection.next(isHead, isDue ? answerWithin : patience)
  if (outcome === "silence" && !isDue) {
    connection.finish()
    outcome = await connection.next(isHead, answerWithin)
  }
  while (typeof outcome !== "string") {
    answers.push({ outcome, isDue })
    isDue = answers.length < answersDue && !isLast(outcome)
    if (!isDue) connection.finish()
    outcome = await connection.next(isHead, answerWithin)
  }
  connection.close()
  return [...answers, { outcome, isDue }]
}

const send = async (world: World, lane: Lane, asked: Request, index: number) => {
  while (world.kept.id === "") await world.keeping
  const { kept } = world
  const { body, wire } = render(asked, { ...world.texts, id: kept.id })
  const isTooLong = body.length > mebibyte
  const sent: Sent = { asked, body: parsed(body), isTooLong, kept }
  const where = String(index)

  const receive = async (outcome: Outcome, isDue: boolean) => {
    if (world.isOver) return
    const reasons =
      typeof outcome === "string"
        ? [isDue || outcome === "silence" ? `no answer: ${outcome}` : undefined]
        : [await follow(world, lane, sent, outcome), await wrong(world, sent, outcome)]
    for (const reason of reasons) {
      if (reason === undefined) continue
      violated(reason, where, describe(sent, wire, outcome), `${reason}, ${asked.kind}, ${asked.breakage?.what}`)
    }
  }

  const port = world.ports[asked.port]
  const isHead = asked.method === "HEAD"
  if (asked.breakage !== undefined) {
    const answers = await exchangeBroken(port, isHead, wire, asked.breakage.due)
    count(asked, answers[0]?.outcome ?? "closed")
    for (const { isDue, outcome } of answers) await receive(outcome, isDue)
    return
  }
  const before = lane.before(port)
  const started = performance.now()
  const outcome = await lane.exchange(port, wire, isHead, answerWithin)
  count(asked, outcome, performance.now() - started)
  if (outcome !== "closed" || before === undefined || world.isOver) return receive(outcome, true)
  // It is the request before that is to blame.
  violated("a connection was kept, and then closed", where, `  after:\n${textOf(before)}\n${describe(sent, wire, outcome)}`)
}

/** Holds the worker's state against what it has to be now that no request is under way. */
const check = async (world: World, where: string) => {
  await world.keeping
  const lane = makeLane()
  const { kept } = world
  const seen = await ask(world, lane, "/session/get", keyOf(world))
  const { expiration, ...rest } = seen.body
  const { expiration: before, ...restBefore } = kept.state
  const isSame = isDeepStrictEqual(rest, restBefore) && sameJson(rest.auth_data, world.auth)
  if (seen.status !== 200 || !isSame || (kept.pinged ? expiration <= before : expiration !== before)) {
    violated(
      "the kept session has changed",
      where,
      `  before, ${kept.pinged ? "pinged" : "not pinged"} since: ${JSON.stringify(kept.state)}\n  now: ${JSON.stringify(seen)}\n`
    )
  }
  Object.assign(kept, { state: seen.body, pinged: false })

  // With the kept one these are all that there is room for.
  const filling = [await create(world, lane, {}), await create(world, lane, {}), await create(world, lane, {})]
  const ends: Array<number> = []
  for (const { body, status } of filling) {
    if (status !== 201) continue
    ends.push((await ask(world, lane, "/session/end", { session_id: body.session_id, session_auth: world.auth })).status)
  }
  const got = [...filling.map(({ status }) => status), ...ends].join()
  if (got !== "201,201,429,200,200")
    violated("not one session is open", where, `  3 creates and the ends of those that passed: ${got}\n`)
  lane.close()

  const since = Date.now()
  const latest = () => world.autoscaler.to("/worker_status/").at(-1)
  await eventually("a report of one session", () => {
    const report = latest()
    return report !== undefined && report.at >= since && report.body.cur_load === 100 && report.body.num_requests_working === 1
  }).catch(() => {})
  if (Date.now() - since > reportedWithin)
    violated("no report of one session", where, `  the latest: ${JSON.stringify(latest())}\n`)
}

/** Makes these requests as they are asked for, all of one block. */
function* made(indexes: ReadonlyArray<number>) {
  let from = -1
  let requestsOfBatch: ReadonlyArray<Request> = []
  for (const index of indexes) {
    const batchOfIndex = index - (index % batch)
    if (batchOfIndex !== from) {
      from = batchOfIndex
      requestsOfBatch = requests((Math.imul(seed, 0x9e3779b1) + from) | 0, batch)
    }
    const asked = requestsOfBatch[index - from]
    if (asked !== undefined) yield { asked, index }
  }
}

const run = async (world: World, indexes: ReadonlyArray<number>) => {
  for (const now of Map.groupBy(indexes, (index) => Math.floor(index / block)).values()) {
    const queue = made(now)
    await Promise.all(
      world.lanes.map(async (lane) => {
        for (const { asked, index } of queue) {
          if (world.isOver || isHopeless()) return
          await send(world, lane, asked, index)
        }
      })
    )
    if (isHopeless()) return
    await check(world, `${now[0]}-${now.at(-1)}`)
  }
}

// The end

const openSockets = (pid: number | undefined) =>
  readdirSync(`/proc/${pid}/fd`).filter((descriptor) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${descriptor}`).startsWith("socket:")
    } catch {
      return false
    }
  }).length

const memory = (pid: number | undefined) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024

const finish = async (world: World, where: string) => {
  const { autoscaler, books, worker } = world
  const lane = makeLane()
  const ended = await ask(world, lane, "/session/end", keyOf(world))
  if (ended.status !== 200) violated("the kept session cannot be ended", where, `  ${JSON.stringify(ended)}\n`)
  for (const one of [lane, ...world.lanes]) one.close()

  const reported = (): typeof books => {
    const sum = (field: string) => autoscaler.to("/worker_status/").reduce((total, { body }) => total + body[field], 0)
    const deletions: ReadonlyArray<Json> = autoscaler.to("/delete_requests/").flatMap(({ body }) => body.requests)
    const deleted = (status: string) => deletions.filter((one) => one.status === status).length
    return {
      new_load: sum("new_load"),
      rej_load: sum("rej_load"),
      Success: deleted("Success"),
      Rejected: deleted("Rejected"),
      callbacks: autoscaler.to("/closed").length
    }
  }
  // Loads are sums of fractions, which come out a little different in another order.
  const digits = (of: typeof books) =>
    JSON.stringify(of, (_, value) => (typeof value === "number" ? value.toPrecision(9) : value))
  await eventually("all reported", () => digits(reported()) === digits(books)).catch(() =>
    violated("the reports do not add up", where, `  reported: ${digits(reported())}\n  due: ${digits(books)}\n`)
  )
  // Those to the autoscaler may be open or not, then and now.
  await eventually("sockets closed", () => openSockets(worker.process.pid) <= world.socketsAtFirst + 2).catch(() =>
    violated("sockets stay open", where, `  ${openSockets(worker.process.pid)}, at first ${world.socketsAtFirst}\n`)
  )
  const rss = memory(worker.process.pid)
  if (rss > mostMemory) violated("too much memory", where, `  ${rss} bytes\n`)
  const bad = /^.*(level=(ERROR|FATAL)|request crashed|unhandled|Warning:|^\s+at ).*$/im.exec(worker.output())
  if (bad !== null) violated("in the log", where, `  ${shown(worker.output().slice(bad.index))}\n`)
  const exit = await worker.stop("SIGTERM")
  if (exit !== 0) violated("the worker did not end well", where, `  exit ${exit}\n`)
  return rss
}

const table = () => {
  const classes = ["2xx", "4xx", "5xx", "none"]
  const line = (cells: ReadonlyArray<string | number>) =>
    cells.map((cell, i) => (i === 0 ? String(cell).padEnd(26) : String(cell).padStart(10))).join("")
  console.log(line(["", "requests", ...classes, "slowest"]))
  for (const [name, { classes: counted, requests: total, slowest }] of [...rows].sort(([a], [b]) => (a < b ? -1 : 1))) {
    console.log(line([name, total, ...classes.map((one) => counted.get(one) ?? 0), `${Math.ceil(slowest)} ms`]))
  }
  console.log(
    [...statuses]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([status, times]) => `${status}: ${times}`)
      .join("  ")
  )
  console.log(
    `sessions opened: ${counts.opened}, refused for want of room: ${counts.noRoom}, refused for the signature: ${counts.unsigned}, ` +
      `releases: ${counts.released}, kept sessions closed and made anew: ${counts.keptAgain}`
  )
}

const chosen = () => {
  const [from = 0, to = from] = given.only?.split("-").map(Number) ?? [0, Number(given.requests) - 1]
  return Array.from({ length: to - from + 1 }, (_, i) => from + i)
}

console.log(`seed ${seed}`)
const started = Date.now()
const indexes = chosen()
const halves = [false, true]
  .map((signed) => ({ signed, indexes: indexes.filter((index) => Math.floor(index / block) % 2 === Number(signed)) }))
  .filter((half) => half.indexes.length > 0)

const fuzz = async ({ indexes, signed }: (typeof halves)[number]) => {
  const keys = generateKeyPairSync("rsa", { modulusLength: 2048 })
  const pem = keys.publicKey.export({ type: "spki", format: "pem" })
  await using autoscaler = await listen((note, response) => response.end(note.path === "/pubkey/" ? pem : "{}"))
  using journal = temporaryDirectory()
  const policy = signed ? { UNSECURED: "false", VAST_SIGNATURE: "require" } : { UNSECURED: "true" }
  const environment = { ...policy, LOG_LEVEL: "info", JOURNAL_DIR: journal.path, MAX_SESSIONS: "3" }
  await using worker = await startReadyWorker(autoscaler, environment, [given.worker, "worker"])
  const signature = sign("RSA-SHA256", Buffer.from(signedMessage(worker.url)), keys.privateKey).toString("base64")
  const world = makeWorld(signed, signature, worker, autoscaler)
  try {
    await keep(world)
    await run(world, indexes)
    const rss = await finish(world, `${indexes[0]}-${indexes.at(-1)}`)
    return `${signed ? "signed" : "unsecured"} worker: ${Math.round(rss / 2 ** 20)} MiB at the end`
  } catch (error) {
    world.isOver = true
    throw new Error(`${error instanceof Error ? error.stack : error}\n${worker.output().slice(-2000)}`)
  }
}

// At the same time, so that one goes on while the other's reports are awaited.
const outcomes = await Promise.allSettled(halves.map(fuzz))

table()
for (const outcome of outcomes) {
  if (outcome.status === "rejected") violations += 1
  console.log(outcome.status === "fulfilled" ? outcome.value : `VIOLATION: ${outcome.reason.message}`)
}
const seconds = Math.round((Date.now() - started) / 1000)
console.log(`${indexes.length} requests, ${violations} violations, seed ${seed}, ${seconds} s`)
process.exitCode = violations > 0 ? 1 : 0
