/**
 * One round: a worker whose processes are killed, stopped and started again on the same disk, by a client that knows what it
 * may expect at each moment, among others that cannot be relied on.
 */
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs"
import { request } from "node:http"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { isDeepStrictEqual } from "node:util"
import { launch, type Run } from "../e2e/harness.ts"
import { type Answer, type Json, type Note, Unfaithful } from "./ControlPlane.ts"
import { Belief, callbacksOf, deletionsOf, type Ending, type Evidence, judge, type Life, owed } from "./Invariants.ts"
import { type Ask, between, type Damage, randomOf, type Script, type Start, type Step, scriptOf, type Upon } from "./Script.ts"

/** What is counted in a round. */
export const counted = [
  "sessions created",
  "creates refused with 429",
  "creates that were not answered",
  "creates that were not answered, and done",
  "kills",
  "kills with a create, ping or end in flight",
  "kills while starting or stopping",
  "SIGTERMs",
  "restarts",
  "sessions restored",
  "clock steps",
  "journals damaged",
  "reports received",
  "reports refused",
  "reports delayed",
  "reports garbled",
  "reports cut",
  "addresses gone for a while",
  "callbacks attempted",
  "callbacks delivered",
  "callbacks repeated",
  "deletions delivered",
  "deletions repeated"
] as const
export type Tally = Record<(typeof counted)[number], number>

export interface Outcome {
  readonly tally: Tally
  readonly seconds: number
  readonly violations: ReadonlyArray<string>
  /** What was done and what came of it, in order. */
  readonly trace: string
  /** What the worker's processes wrote. */
  readonly log: string
  /** The worker's files, if anything was violated. */
  readonly directory: string
}

/** One process of the worker. */
interface Process extends Life {
  readonly run: Run
  /** Seconds that its clock is off. */
  clock: number
  goingSince: number
  stopping: boolean
  /** Requests to release whatever is open that it may still get round to. */
  releases: number
}

/** An answer, or that there was none. Times are epoch seconds. */
interface Answered {
  readonly status: number | "lost"
  readonly body: Json
  readonly sent: number
  readonly answered: number
}

/** The client goes away, so many milliseconds after the whole request or half of it. */
type GoingAway = Pick<Step & { readonly do: "abort" }, "half" | "after">

/** Nothing that is found after this would mean anything. */
class Broken extends Error {}

const seconds = () => Date.now() / 1000
const sleep = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds))

/** Waits by the fraction of a millisecond. */
const sleepFinely = async (milliseconds: number) => {
  const due = performance.now() + milliseconds
  if (milliseconds > 3) await sleep(milliseconds - 2)
  while (performance.now() < due) await new Promise((resolve) => setImmediate(resolve))
}

/** What is no JSON is no answer that anything can be made of. */
const parse = (text: string): Json => {
  try {
    return JSON.parse(text)
  } catch {
    return {}
  }
}

const claimed = new Set<number>()

/** A port that is still there after a restart: none of those that the system gives to whoever connects meanwhile. */
const claimPort = async (): Promise<number> => {
  const port = Math.floor(between(Math.random, 10_000, 32_000))
  if (claimed.has(port)) return claimPort()
  claimed.add(port)
  const server = createServer().listen(port)
  const free = await once(server, "listening").then(
    () => true,
    () => false
  )
  if (!free) return claimPort()
  server.close()
  await once(server, "close")
  return port
}

/** Seconds after SIGTERM within which a worker has to be gone: an instance kills it a little later. */
const leavesWithin = 8
/** Seconds in fair weather within which all that is owed has to arrive: the longest pause between two reports. */
const settlesWithin = 30
/** Seconds that the worker may take to do anything else. */
const patience = 15

const refusals: ReadonlyArray<Answer> = ["dropped", "error"]

class Round {
  readonly violations: Array<string> = []
  readonly #began = performance.now()
  readonly #trace: Array<string> = []
  readonly #script: Script
  readonly #worker: string
  readonly #directory = mkdtempSync(join(tmpdir(), "null-pyworker-chaos-"))
  readonly #journal = join(this.#directory, "worker-42.sqlite")
  readonly #ports: Readonly<Record<"public" | "plain" | "control", number>>
  readonly #addresses: readonly [Unfaithful, Unfaithful]
  readonly #user: Unfaithful
  readonly #reports: Array<Note> = []
  readonly #callbacks: Array<Note> = []
  readonly #beliefs: Array<Belief> = []
  readonly #processes: Array<Process> = []
  readonly #inFlight = new Set<Promise<unknown>>()
  #onTold = () => {}
  readonly #tally = Object.fromEntries(counted.map((row) => [row, 0])) as Tally

  constructor(seed: number, worker: string, ports: ReadonlyArray<number>) {
    const random = randomOf(seed + 1)
    const [publicPort = 0, plain = 0, control = 0, a = 0, b = 0, user = 0] = ports
    this.#script = scriptOf(seed)
    this.#worker = worker
    this.#ports = { public: publicPort, plain, control }
    this.#addresses = [
      new Unfaithful(a, random, (note) => this.#reported("A", note)),
      new Unfaithful(b, random, (note) => this.#reported("B", note))
    ]
    this.#user = new Unfaithful(user, random, (note) => this.#calledBack(note))
  }

  async play(): Promise<Outcome> {
    const everybody = [...this.#addresses, this.#user]
    try {
      await Promise.all(everybody.map((one) => one.listen()))
      for (const one of everybody) one.weather = this.#script.weather
      await this.#start(this.#script.clock)
      await this.#ready()
      for (const step of this.#script.steps) await this.#do(step)
      for (const one of everybody) one.weather = 0
      await Promise.all(everybody.map((one) => one.listen()))
      await this.#settle()
      if (this.#script.damage !== undefined) await this.#goOnAfter(this.#script.damage)
      for (const violation of judge(this.#evidence)) this.#violated(violation)
    } catch (error) {
      this.#violated(error instanceof Broken ? error.message : `the round broke: ${error instanceof Error ? error.stack : error}`)
    } finally {
      for (const process of this.#processes) {
        process.goingSince = Math.min(process.goingSince, seconds())
        await process.run[Symbol.asyncDispose]()
      }
      for (const one of everybody) one.close()
      if (this.violations.length === 0) rmSync(this.#directory, { recursive: true })
    }
    this.#count()
    return {
      tally: this.#tally,
      seconds: (performance.now() - this.#began) / 1000,
      violations: this.violations,
      trace: this.#trace.join("\n"),
      log: this.#processes.map(({ log, number }) => `process ${number}\n${log}`).join("\n"),
      directory: this.#directory
    }
  }

  get #evidence(): Evidence {
    return { beliefs: this.#beliefs, lives: this.#processes, reports: this.#reports, callbacks: this.#callbacks }
  }

  get #process(): Process {
    const process = this.#processes.at(-1)
    if (process === undefined) throw new Broken("no process was started")
    return process
  }

  #tell(line: string): void {
    this.#trace.push(`${((performance.now() - this.#began) / 1000).toFixed(3)} ${line}`)
  }

  #violated(what: string): void {
    this.violations.push(what)
    this.#tell(`VIOLATED: ${what}`)
  }

  // What others are told

  #reported(who: string, note: Note): void {
    this.#reports.push(note)
    const { cur_load, cur_perf, new_load, rej_load, requests } = note.body
    const deleted = requests?.map((request: Json) => `#${request.request_idx} ${request.status}`)
    this.#tell(`  ${who} ${note.path} ${JSON.stringify(deleted ?? { new_load, cur_load, cur_perf, rej_load })} -> ${note.answer}`)
    for (const { request_idx } of requests ?? []) this.#toldOf(request_idx, note)
  }

  #calledBack(note: Note): void {
    this.#callbacks.push(note)
    this.#tell(`  user ${note.path} -> ${note.answer}`)
    this.#toldOf(Number(note.path.split("/").at(-1)), note)
  }

  #toldOf(idx: number, { at, path }: Note): void {
    this.#onTold()
    const belief = this.#beliefs.find((belief) => belief.idx === idx)
    if (belief === undefined) this.#violated(`${path} was told of #${idx}, which nobody asked for`)
    if (belief?.surelyOpen(at)) this.#violated(`${path} was told of the end of #${idx}, which is open`)
    belief?.over(at)
  }

  // The worker's processes

  async #start(clock: number, journalDamaged = false): Promise<void> {
    const number = this.#processes.length + 1
    const { control, plain, public: port } = this.#ports
    const clockFile = join(this.#directory, "clock")
    writeFileSync(clockFile, String(clock))
    const run = launch(process.execPath, [this.#worker, "worker"], {
      CONTAINER_ID: "42",
      MASTER_TOKEN: "the-master-token",
      // By the path a report says which process it is of.
      REPORT_ADDR: this.#addresses.map(({ url }) => `${url}/${number}`).join(),
      PUBLIC_IPADDR: "127.0.0.1",
      WORKER_PORT: String(port),
      [`VAST_TCP_PORT_${port}`]: String(port),
      WORKER_HTTP_PORT: String(plain),
      NULL_CONTROL_PORT: String(control),
      UNSECURED: "true",
      LOG_LEVEL: "info",
      MAX_SESSIONS: String(this.#script.maxSessions),
      JOURNAL_DIR: this.#directory,
      CHAOS_CLOCK_FILE: clockFile,
      NODE_OPTIONS: `--import=${new URL("clock.mjs", import.meta.url)}`
    })
    const started: Process = {
      number,
      run,
      startedAt: seconds(),
      clock: clock / 1000,
      goingSince: Infinity,
      stopping: false,
      releases: 0,
      restored: [],
      journalDamaged,
      get log() {
        return run.output()
      }
    }
    this.#processes.push(started)
    for (const belief of this.#beliefs) belief.inOtherHands(started.clock)
    this.#tell(`process ${number} starts, clock off by ${clock} ms`)
    run.exit.then((exit) => {
      this.#tell(`process ${number} ended: ${exit}`)
      if (started.goingSince === Infinity) this.#violated(`process ${number} ended by itself: ${exit}`)
    })
  }

  /** Waits for what the worker writes, after the first `from` characters. */
  async #written(what: RegExp, from = 0): Promise<void> {
    const { number, run } = this.#process
    const deadline = performance.now() + patience * 1000
    while (!what.test(run.output().slice(from))) {
      const { exitCode, signalCode } = run.process
      if (exitCode !== null || signalCode !== null) throw new Broken(`process ${number} ended before it wrote ${what}`)
      if (performance.now() > deadline) throw new Broken(`process ${number} did not write within ${patience} s: ${what}`)
      await sleep(2)
    }
  }

  async #ready(): Promise<void> {
    await this.#written(/message=ready/)
    const { clock, restored, startedAt } = this.#process
    const now = seconds()
    for (const belief of this.#beliefs) {
      belief.takenOver([startedAt, now], clock, false)
      if (belief.surelyOpen(now)) restored.push({ belief, until: belief.dies[0] })
    }
  }

  async #restart({ clock, dies, look }: Start, journalDamaged = false): Promise<void> {
    this.#tally.restarts += 1
    await this.#start(clock, journalDamaged)
    if (dies !== undefined) {
      if (dies.upon === "reading") await this.#written(/message="journal read"|message=ready/)
      await sleepFinely(dies.after)
      this.#tally["kills while starting or stopping"] += 1
      const during = [this.#process.startedAt, seconds() + 0.1] as const
      for (const belief of this.#beliefs) belief.takenOver(during, this.#process.clock, true)
      await this.#kill()
      return this.#restart({ clock, dies: undefined, look }, journalDamaged)
    }
    await this.#ready()
    if (look) await this.#look()
  }

  async #kill(): Promise<void> {
    const { number, run } = this.#process
    const at = seconds()
    this.#process.goingSince = Math.min(this.#process.goingSince, at)
    this.#tally.kills += 1
    this.#tell(`process ${number} is killed`)
    await run.stop("SIGKILL")
    await Promise.all(this.#inFlight)
    for (const belief of this.#beliefs) belief.died(at)
  }

  /** Stopping is the end of all sessions; unless it is cut short by SIGKILL, which leaves that open. */
  async #stop(asks: ReadonlyArray<Ask>, killAfter?: number): Promise<void> {
    const { number, run } = this.#process
    const told = seconds()
    Object.assign(this.#process, { goingSince: told, stopping: true })
    this.#tally.SIGTERMs += 1
    this.#tell(`process ${number} is told to stop`)
    for (const belief of this.#beliefs) belief.ending(told, number)
    run.process.kill("SIGTERM")
    for (const ask of asks) this.#ask(ask, false)
    if (killAfter !== undefined) {
      await sleepFinely(killAfter)
      this.#tally["kills while starting or stopping"] += 1
      return this.#kill()
    }
    const late = setTimeout(() => {
      this.#violated(`process ${number} was still there ${leavesWithin} s after SIGTERM`)
      run.process.kill("SIGKILL")
    }, leavesWithin * 1000)
    const exit = await run.exit
    clearTimeout(late)
    await Promise.all(this.#inFlight)
    if (exit !== 0) this.#violated(`process ${number} ended with ${exit} after SIGTERM`)
    for (const belief of this.#beliefs) belief.over(seconds())
  }

  async #stepClock(clock: number): Promise<void> {
    const from = this.#process.run.output().length
    this.#tally["clock steps"] += 1
    writeFileSync(join(this.#directory, "clock"), String(clock))
    this.#process.run.process.kill("SIGUSR2")
    await this.#written(/chaos clock/, from)
    this.#process.clock = clock / 1000
    this.#tell(`the clock is off by ${clock} ms`)
  }

  // The client

  /** Asks the worker, on a connection of its own. */
  #post(port: number, path: string, body: object, about: string, goingAway?: GoingAway): Promise<Answered> {
    const asked = this.#process
    const sent = seconds()
    const bytes = Buffer.from(JSON.stringify(body))
    const what = `${path} ${about}`
    return new Promise<Answered>((resolve) => {
      let gone = false
      const lost = (reason: string) => {
        if (!gone && asked.goingSince === Infinity) this.#violated(`no answer of a worker that is there: ${reason}: ${what}`)
        this.#tell(`${what} -> ${reason}`)
        resolve({ status: "lost", body: undefined, sent, answered: seconds() })
      }
      const call = request({ host: "127.0.0.1", port, path, method: "POST", agent: false })
      call.setHeader("content-length", bytes.length)
      call.on("error", (error) => lost(error.message))
      call.on("response", (response) => {
        let text = ""
        response.on("data", (chunk) => {
          text += chunk
        })
        response.on("error", (error) => lost(error.message))
        response.on("end", () => {
          const status = response.statusCode ?? 0
          if (status >= 500 && !(status === 503 && asked.stopping)) this.#violated(`${status} ${text} to ${what}`)
          this.#tell(`${what} -> ${status} ${text}`)
          resolve({ status, body: parse(text), sent, answered: seconds() })
        })
      })
      call.setTimeout(patience * 1000, () => call.destroy(new Error(`none within ${patience} s`)))
      if (goingAway?.half === true) call.write(bytes.subarray(0, bytes.length / 2))
      else call.end(bytes)
      if (goingAway === undefined) return
      sleepFinely(goingAway.after).then(() => {
        gone = true
        call.destroy(new Error("the client went away"))
      })
    })
  }

  /** Asks for something, and compares the answer with what is known. `alone` is whether nothing else is under way. */
  #ask(ask: Ask, alone: boolean, goingAway?: GoingAway): Promise<unknown> {
    const asking = this.#askFor(ask, alone, goingAway)
    this.#inFlight.add(asking)
    return asking.finally(() => this.#inFlight.delete(asking))
  }

  async #askFor(ask: Ask, alone: boolean, goingAway?: GoingAway): Promise<unknown> {
    if (ask.kind === "create") return this.#create(ask, goingAway)
    if (ask.kind === "release") return this.#release(goingAway)
    const known = this.#beliefs.filter((belief) => belief.id !== undefined)
    const belief = known[Math.floor(ask.which * known.length)]
    if (belief === undefined) return
    if (ask.kind === "end") return this.#end(belief, goingAway)
    if (ask.kind === "ping") return this.#ping(belief, goingAway)
    return this.#see(belief, ask.kind, alone, goingAway)
  }

  async #create({ callback, lifetime }: Pick<Ask, "callback" | "lifetime">, goingAway?: GoingAway): Promise<Belief> {
    const idx = this.#beliefs.length + 1
    const asked = this.#process
    const reservation = {
      lifetime,
      on_close_route: callback === undefined ? null : `${this.#user.url}/closed/${idx}`,
      on_close_payload: callback === undefined ? null : callback.payload
    }
    const auth = {
      cost: 100,
      endpoint: "null",
      reqnum: idx,
      request_idx: idx,
      signature: "ü",
      url: "http://x",
      more: { of: [idx] }
    }
    const belief = new Belief(auth, reservation, asked.number)
    this.#beliefs.push(belief)
    if (asked.releases > 0) belief.ending(seconds(), asked.number)
    const asking = { auth_data: auth, payload: reservation }
    const about = `#${idx} ${JSON.stringify(reservation)}`
    const { answered, body, sent, status } = await this.#post(this.#ports.public, "/session/create", asking, about, goingAway)
    belief.status = goingAway?.half === true ? "half" : status
    if (status === 201) {
      belief.created(body.session_id, body.expiration, sent, answered)
      if (asked.stopping) belief.ending(answered, asked.number)
      const [low, high] = belief.dies.map((time) => time + asked.clock) as [number, number]
      if (body.expiration < low - 0.1 || body.expiration > high + 0.1) {
        this.#violated(`#${idx} expires at ${body.expiration}, not between ${low} and ${high}`)
      }
      const open = this.#beliefs.filter((belief) => belief.surelyOpen(answered))
      if (open.length > this.#script.maxSessions) this.#violated(`${open.map(({ idx }) => `#${idx}`).join()} are open at once`)
    } else if (belief.status !== "lost") {
      belief.over(0)
      const others = this.#beliefs.filter((belief) => !belief.surelyOver(sent))
      if (status === 429 && others.length < this.#script.maxSessions) this.#violated(`#${idx} was refused, but there is room`)
      if (status !== 429 && status !== 503 && status !== "lost") this.#violated(`#${idx} was answered ${status}`)
    }
    return belief
  }

  async #see(belief: Belief, kind: "get" | "health", alone: boolean, goingAway?: GoingAway): Promise<boolean> {
    const { number } = this.#process
    const [atLeast] = belief.expiration
    const key = { session_id: belief.id, session_auth: belief.auth }
    const { answered, body, sent, status } = await this.#post(
      this.#ports.public,
      `/session/${kind}`,
      key,
      `#${belief.idx}`,
      goingAway
    )
    if (status === "lost") return false
    const open = kind === "get" ? status === 200 : body.ok
    this.#compare(belief, open, sent, answered, `${kind} ${status}`)
    if (kind === "health") {
      if (status !== 200) this.#violated(`the health of #${belief.idx} was answered ${status}`)
    } else if (open) {
      const { auth_data, expiration, lifetime, on_close_payload, on_close_route, session_id } = body
      const same = isDeepStrictEqual(
        [session_id, auth_data, { lifetime, on_close_route, on_close_payload }],
        [belief.id, belief.auth, belief.reservation]
      )
      if (!same) this.#violated(`#${belief.idx} is not what it was: ${JSON.stringify(body)}`)
      if (alone ? !belief.mayExpire(expiration, atLeast) : expiration < atLeast - 0.1) {
        this.#violated(`#${belief.idx} expires at ${expiration}, not within ${belief.expiration}`)
      }
      if (alone) belief.seen(expiration, number)
    } else if (status !== 400) this.#violated(`get of #${belief.idx} was answered ${status}`)
    return open
  }

  async #ping(belief: Belief, goingAway?: GoingAway): Promise<void> {
    const { number } = this.#process
    const asking = { auth_data: belief.auth, payload: {}, session_id: belief.id }
    const { answered, sent, status } = await this.#post(this.#ports.public, "/ping", asking, `#${belief.idx}`, goingAway)
    if (status === "lost") {
      if (goingAway?.half !== true) belief.perhapsExtended(number)
      return
    }
    if (status !== 200 && status !== 410) this.#violated(`a ping of #${belief.idx} was answered ${status}`)
    this.#compare(belief, status === 200, sent, answered, `ping ${status}`)
    if (status === 200) belief.extended(sent, answered)
  }

  async #end(belief: Belief, goingAway?: GoingAway): Promise<void> {
    const half = goingAway?.half === true
    const ending = half ? undefined : belief.ending(seconds(), this.#process.number)
    const key = { session_id: belief.id, session_auth: belief.auth }
    const port = belief.idx % 2 === 0 ? this.#ports.public : this.#ports.plain
    const { answered, sent, status } = await this.#post(port, "/session/end", key, `#${belief.idx}`, goingAway)
    if (status === "lost" || ending === undefined) return
    if (status === 200 && belief.surelyOver(sent)) this.#violated(`#${belief.idx} was over, and was ended again`)
    if (status !== 200 && belief.mustHaveEnded(ending, answered))
      this.#violated(`#${belief.idx} was open, but not to be ended: ${status}`)
    if (status !== 200 && status !== 400 && status !== 410) this.#violated(`the end of #${belief.idx} was answered ${status}`)
    belief.over(answered)
  }

  async #release(goingAway?: GoingAway): Promise<void> {
    const asked = this.#process
    const endings = this.#beliefs.map((belief): Ending => belief.ending(seconds(), asked.number))
    // Created by now, or never: what has been answered, and what a process was asked for that is gone.
    const there = this.#beliefs.filter(({ life, status }) => status === 201 || (status === "lost" && life < asked.number))
    asked.releases += 1
    const { answered, body, sent, status } = await this.#post(this.#ports.control, "/release", {}, "all", goingAway)
    if (status === "lost") return
    asked.releases -= 1
    if (status !== 200) return this.#violated(`/release was answered ${status}`)
    const released: ReadonlyArray<string> = body.session_ids ?? []
    for (const ending of endings) {
      const { belief } = ending
      const named = belief.id !== undefined && released.includes(belief.id)
      if (named && belief.surelyOver(sent)) this.#violated(`#${belief.idx} was over, and was released`)
      if (!named && belief.mustHaveEnded(ending, answered)) this.#violated(`#${belief.idx} was open, but not released`)
      if (named) belief.over(answered)
    }
    for (const belief of there) belief.over(answered)
  }

  #compare(belief: Belief, open: boolean, sent: number, answered: number, what: string): void {
    if (open && belief.surelyOver(sent)) this.#violated(`#${belief.idx} was over, and is open: ${what}`)
    if (!open && belief.surelyOpen(answered)) this.#violated(`#${belief.idx} was open, and is not: ${what}`)
  }

  /** What became of the sessions that there were before this process; and those that must be open take their room. */
  async #look(): Promise<void> {
    const before = this.#processes.at(-2)?.startedAt ?? 0
    for (const belief of this.#beliefs) {
      if (belief.id !== undefined && belief.overSince >= before) await this.#see(belief, "get", true)
    }
    const open = this.#beliefs.filter((belief) => belief.surelyOpen(seconds()))
    if (open.length >= this.#script.maxSessions) await this.#create({ lifetime: 5, callback: undefined })
  }

  // The round

  async #do(step: Step): Promise<unknown> {
    switch (step.do) {
      case "ask":
        return Promise.all(step.asks.map((ask) => this.#ask(ask, step.asks.length === 1)))
      case "abort":
        return this.#ask(step.ask, false, step)
      case "kill": {
        const unanswered = new Set(step.asks)
        for (const ask of step.asks) this.#ask(ask, false).then(() => unanswered.delete(ask))
        await this.#moment(step.upon)
        await sleepFinely(step.after)
        const writing = Array.from(unanswered).some(({ kind }) => kind === "create" || kind === "ping" || kind === "end")
        if (writing) this.#tally["kills with a create, ping or end in flight"] += 1
        await this.#kill()
        return this.#restart(step.next)
      }
      case "stop":
        await this.#stop(step.asks, step.killAfter)
        return this.#restart(step.next)
      case "clock":
        return this.#stepClock(step.clock)
      case "refuse":
        this.#tally["addresses gone for a while"] += step.addresses.length
        this.#tell(`${step.addresses.map((address) => "AB"[address]).join(" and ")} refuse connections for ${step.for} ms`)
        for (const address of step.addresses) this.#addresses[address].refuse(step.for)
        return
      case "wait":
        return sleep(step.for)
    }
  }

  /** Waits for the worker to do that, if it does so soon. */
  async #moment(upon: Upon): Promise<void> {
    if (upon === "telling") {
      const told = new Promise<void>((resolve) => {
        this.#onTold = resolve
      })
      await Promise.race([told, sleep(300)])
    }
    if (upon === "writing") {
      const written = () => statSync(`${this.#journal}-wal`, { throwIfNoEntry: false })?.size
      const before = written()
      const deadline = performance.now() + 20
      while (written() === before && performance.now() < deadline) await new Promise((resolve) => setImmediate(resolve))
    }
  }

  /** In fair weather: whatever is open can be ended, the slot is free then, and all that is owed arrives. */
  async #settle(): Promise<void> {
    this.#tell("all are well from now on")
    for (const belief of this.#beliefs) {
      // Whom nobody has answered, the worker's log may tell of.
      const opened = new RegExp(`message="session opened" session_id=(\\w+) .*request_idx=${belief.idx}$`, "m")
      for (const { log } of this.#processes) belief.id ??= opened.exec(log)?.[1]
      if (belief.id !== undefined && (await this.#see(belief, "get", true))) await this.#end(belief)
    }
    const deadline = seconds() + settlesWithin
    const { last } = this.#script
    const lastOne = { lifetime: last === "client" ? 30 : 0.5, callback: { payload: { last: true } } }
    // A create whose client went away may still be on its way into the slot.
    while (true) {
      await this.#release()
      const belief = await this.#create(lastOne)
      if (belief.status === 201 && last === "client") await this.#end(belief)
      if (belief.status === 201) break
      if (seconds() > deadline) throw new Broken("the slot does not come free")
      await sleep(200)
    }
    if (last !== "client") await this.#stepClock(last.clock)
    while (owed(this.#evidence).length > 0) {
      if (seconds() > deadline)
        throw new Broken(`owed after ${settlesWithin} s in fair weather: ${owed(this.#evidence).join(", ")}`)
      await sleep(20)
    }
    await this.#stop([])
  }

  /** Nobody was owed anything, so nothing is lost with the journal; and the worker is as good as new. */
  async #goOnAfter({ at, kind, seed }: Damage): Promise<void> {
    const file = this.#journal
    const bytes = readFileSync(file)
    const random = randomOf(seed)
    this.#tally["journals damaged"] += 1
    this.#tell(`the journal is ${kind} at ${at}`)
    if (kind === "truncated") truncateSync(file, Math.floor(at * bytes.length))
    else if (kind === "foreign") writeFileSync(file, randomBytes(1 + Math.floor(at * 20_000)))
    else {
      for (let flips = 0; flips < 1 + at * 40; flips++) {
        const place = Math.floor(random() * bytes.length)
        bytes[place] = (bytes[place] ?? 0) ^ (1 << Math.floor(random() * 8))
      }
      writeFileSync(file, bytes)
    }
    const next: Start = { clock: 0, dies: undefined, look: true }
    await this.#restart(next, true)
    await this.#create({ lifetime: 60, callback: { payload: null } })
    await this.#kill()
    await this.#restart(next)
    await this.#settle()
  }

  #count(): void {
    const count = (row: keyof Tally, number: number) => {
      this.#tally[row] += number
    }
    const answers = (...answers: ReadonlyArray<Answer>) => this.#reports.filter(({ answer }) => answers.includes(answer)).length
    const status = (status: Belief["status"]) => this.#beliefs.filter((belief) => belief.status === status)
    const deletions = deletionsOf(this.#evidence)
    const delivered = Array.from(deletions.values(), (told) => told.filter(({ accepted }) => accepted).length)
    const attempts = Array.from(callbacksOf(this.#evidence).values())
    const called = attempts.map((attempts) => attempts.filter(({ acceptedAt }) => acceptedAt !== undefined).length)
    const atAll = (times: ReadonlyArray<number>) => times.filter((times) => times > 0).length
    const again = (times: ReadonlyArray<number>) => times.reduce((sum, times) => sum + Math.max(times - 1, 0), 0)
    count("sessions created", status(201).length)
    count("creates refused with 429", status(429).length)
    count("creates that were not answered", status("lost").length)
    count("creates that were not answered, and done", status("lost").filter(({ idx }) => deletions.has(idx)).length)
    for (const { log } of this.#processes) count("sessions restored", log.split('message="session restored"').length - 1)
    count("reports received", this.#reports.length)
    count("reports refused", answers(...refusals))
    count("reports delayed", answers("delayed"))
    count("reports garbled", answers("garbled"))
    count("reports cut", answers("cut"))
    count("callbacks attempted", this.#callbacks.length)
    count("callbacks delivered", atAll(called))
    count("callbacks repeated", again(called))
    count("deletions delivered", atAll(delivered))
    count("deletions repeated", again(delivered))
  }
}

/** Plays the round of this seed with the built worker in `worker`. */
export const play = async (seed: number, worker: string): Promise<Outcome> => {
  const ports = await Promise.all(Array.from({ length: 6 }, claimPort))
  const outcome = await new Round(seed, worker, ports).play()
  for (const port of ports) claimed.delete(port)
  return outcome
}
