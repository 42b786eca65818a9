/**
 * What is measured of a running worker, a row each. Within a row the subjects take turns, sample by sample, so that whatever
 * else the machine does meanwhile hits them all alike.
 */
import { setTimeout as sleep } from "node:timers/promises"
import { post } from "../e2e/harness.ts"
import { load } from "./load.ts"
import { cpuSeconds, dropPageCache, memory } from "./process.ts"
import { bare, ours, oursFull, oursSigned, type Running, type Subject, start, theirs } from "./subjects.ts"
import { atLeast, atMost, figures, quantile, type Row } from "./table.ts"

export interface Bench {
  readonly quick: boolean
  /** From 0 to 1, the same in every run. */
  readonly random: () => number
}

const interleaved = async (
  subjects: ReadonlyArray<Subject>,
  rounds: number,
  measure: (subject: Subject, round: number) => Promise<void>
) => {
  for (let round = 0; round < rounds; round++) {
    for (const subject of subjects) if (subject.notRun === undefined) await measure(subject, round)
  }
}

/** Runs the subjects at the same time, for what costs them next to nothing. */
const together = async (subjects: ReadonlyArray<Subject>, measure: (running: Running) => Promise<void>, settings = {}) => {
  await using stack = new AsyncDisposableStack()
  const running: Array<Running> = []
  for (const subject of subjects) {
    if (subject.notRun === undefined) running.push(stack.use(await start(subject, settings)))
  }
  await Promise.all(running.map(measure))
}

export const starting = async ({ quick }: Bench): Promise<Row> => {
  const subjects = [ours, oursFull, theirs, bare]
  const { add, lines, median } = figures(subjects)
  const measure = (files: string) => async (subject: Subject) => {
    await using running = await start(subject)
    add(`start to listening, ${files} files`, "ms", subject, running.listeningAfter)
    if (running.readyAfter !== undefined) add(`start to ready, ${files} files`, "ms", subject, running.readyAfter)
  }
  await interleaved(subjects, quick ? 3 : 15, measure("cached"))
  const denied = dropPageCache()
  if (denied === undefined) {
    await interleaved(subjects, quick ? 1 : 7, async (subject) => {
      dropPageCache()
      await measure("uncached")(subject)
    })
  }
  const ready = (subject: Subject) =>
    median("start to ready, cached files", subject) / median("start to ready, cached files", theirs)
  return {
    title: "Start",
    lines: lines(),
    targets: [ours, oursFull].flatMap((subject) => atMost(`start to ready, ${subject.name} / theirs`, ready(subject), 0.25)),
    notes: denied === undefined ? [] : [`uncached files not run: the page cache could not be dropped (${denied})`]
  }
}

export const memoryUsed = async ({ quick }: Bench): Promise<Row> => {
  const subjects = [ours, oursFull, theirs, bare]
  const { add, lines, median, notRun } = figures(subjects)
  const [few, manySessions] = [10_000, quick ? 20_000 : 1_000_000]
  // Once is enough for the many, and of these: what grows with every session shows itself.
  const patient = [ours, bare]
  const after = (sessions: number) => `after ${sessions.toLocaleString("en-US")} sessions`
  const look = ({ pid, subject }: Running, when: string) => {
    const { pss, rss } = memory(pid)
    add(`RSS ${when}`, "MiB", subject, rss)
    add(`PSS ${when}`, "MiB", subject, pss)
  }
  await interleaved(subjects, quick ? 1 : 2, async (subject, round) => {
    await using running = await start(subject, { maxSessions: 16 })
    const { auth, port } = running
    await sleep(quick ? 1500 : 10_000)
    look(running, "idle")
    let done = 0
    for (const sessions of round === 0 && patient.includes(subject) ? [few, manySessions] : [few]) {
      await load({ work: "cycle", connections: 16, count: sessions - done, port, auth })
      done = sessions
      await sleep(quick ? 1000 : 5000)
      look(running, after(sessions))
    }
  })
  for (const subject of subjects) {
    if (patient.includes(subject)) continue
    for (const size of ["RSS", "PSS"]) notRun(`${size} ${after(manySessions)}`, subject, "to spare time")
  }
  const rss = (subject: Subject, when = "idle") => median(`RSS ${when}`, subject)
  return {
    title: "Memory",
    lines: lines(),
    targets: [ours, oursFull].flatMap((subject) => [
      ...atMost(`idle RSS, ${subject.name} / theirs`, rss(subject) / rss(theirs), 1.25),
      ...atMost(`idle RSS, ${subject.name} - bare, MiB`, rss(subject) - rss(bare), 12),
      ...atMost(
        `RSS ${after(manySessions)} - ${after(few)}, ${subject.name}, MiB`,
        rss(subject, after(manySessions)) - rss(subject, after(few)),
        5
      )
    ])
  }
}

export const idle = async ({ quick }: Bench): Promise<Row> => {
  const subjects = [ours, oursFull, theirs, bare]
  const { add, lines, median } = figures(subjects)
  const seconds = quick ? 5 : 30
  for (let round = 0; round < (quick ? 1 : 2); round++) {
    await together(subjects, async ({ pid, subject }) => {
      await sleep(quick ? 1500 : 10_000)
      const before = cpuSeconds(pid)
      await sleep(seconds * 1000)
      add("processor time, ready and idle", "ms/s", subject, ((cpuSeconds(pid) - before) * 1000) / seconds)
    })
  }
  const cpu = (subject: Subject) => median("processor time, ready and idle", subject)
  return {
    title: "Idle processor time",
    lines: lines(),
    targets: [ours, oursFull].flatMap((subject) => atMost(`${subject.name} / theirs`, cpu(subject) / cpu(theirs), 1))
  }
}

export const throughput = async ({ quick }: Bench): Promise<Row> => {
  const subjects = [ours, oursSigned, oursFull, theirs, bare]
  const { add, lines, median } = figures(subjects)
  const seconds = quick ? 0.5 : 2
  const busy: Array<number> = []
  const on = (connections: number) => `${connections} connection${connections === 1 ? "" : "s"}`
  const cycles = (connections: number) => `${on(connections)}: create + end`
  const latency = (connections: number, share: number) => `${on(connections)}: a request, p${share}`
  await interleaved(subjects, quick ? 1 : 4, async (subject) => {
    await using running = await start(subject, { maxSessions: 256 })
    const { auth, pid, port } = running
    // The same work for all, and enough of it to have been compiled.
    await load({ work: "cycle", connections: 16, count: quick ? 1000 : 15_000, port, auth })
    for (const connections of [1, 16, 256]) {
      const before = cpuSeconds(pid)
      const done = await load({ work: "cycle", connections, seconds, port, auth })
      add(cycles(connections), "cycles/s", subject, done.count / done.seconds)
      const latencies = Object.values(done.latencies).flatMap((list) => Array.from(list))
      for (const share of [50, 99, 99.9]) add(latency(connections, share), "ms", subject, quantile(latencies, share / 100))
      add(`${on(connections)}: processor time a cycle`, "us", subject, ((cpuSeconds(pid) - before) / done.count) * 1e6)
      busy.push(done.busy)
    }
    for (const work of ["health", "ping"] as const) {
      const done = await load({ work, connections: 16, seconds, port, auth })
      add(`${on(16)}: ${work}`, "requests/s", subject, done.count / done.seconds)
      busy.push(done.busy)
    }
  })
  const at16 = (subject: Subject) => median(cycles(16), subject)
  const p99 = (subject: Subject) => median(latency(16, 99), subject)
  return {
    title: "Throughput and latency under load",
    lines: lines(),
    targets: [
      ...[oursSigned, oursFull].flatMap((subject) =>
        atLeast(`cycles/s at 16 connections, ${subject.name} / theirs`, at16(subject) / at16(theirs), 3)
      ),
      ...atLeast("cycles/s at 16 connections, ours / bare", at16(ours) / at16(bare), 0.7),
      ...[ours, oursFull].flatMap((subject) =>
        atMost(`p99 at 16 connections, ${subject.name} / theirs`, p99(subject) / p99(theirs), 0.5)
      )
    ],
    notes: [`the load generator was busy for at most ${Math.round(Math.max(...busy) * 100)} % of its core`]
  }
}

const authOf = ({ auth }: Running, request_idx: number) => ({ ...auth, request_idx, reqnum: request_idx })

const create = async (running: Running, request_idx: number, lifetime: number) => {
  const auth_data = authOf(running, request_idx)
  const { body, status } = await post(`${running.url}/session/create`, { auth_data, payload: { lifetime } })
  if (status !== 201) throw new Error(`${running.subject.name}: create answered ${status}`)
  return { session_id: body.session_id as string, session_auth: auth_data, expiration: body.expiration as number }
}

const end = async (running: Running, { session_auth, session_id }: Awaited<ReturnType<typeof create>>) => {
  const { status } = await post(`${running.url}/session/end`, { session_id, session_auth })
  if (status !== 200) throw new Error(`${running.subject.name}: end answered ${status}`)
}

/** Seconds between two looks of the original for what has expired. */
const sweep = 5

export const punctuality = async ({ quick, random }: Bench): Promise<Row> => {
  const subjects = [ours, oursFull, theirs]
  const { add, lines, median, quantile } = figures(subjects)
  const sessions = quick ? 40 : 100
  // Sessions that expire all over a sweep meet it as real ones do.
  const spread = quick ? sweep / 2 : sweep

  await interleaved(subjects, quick ? 1 : 2, async (subject) => {
    await using running = await start(subject, { maxSessions: sessions })
    // A worker that has just started is slow at everything for the first time.
    await load({ work: "cycle", connections: 4, count: 500, port: running.port, auth: running.auth })
    const ended = new Map<number, number>()
    running.autoscaler.hear(({ body, path }) => {
      if (path !== "/delete_requests/") return
      for (const request of body.requests) ended.set(request.request_idx, request.work_completed_at)
    })
    const began = performance.now()
    const created: Array<Awaited<ReturnType<typeof create>>> = []
    for (let index = 0; index < sessions; index++) {
      created.push(await create(running, index, 0.5))
      await sleep(Math.max(0, began + ((index + 1) / sessions) * spread * 1000 - performance.now()))
    }
    const known = () => created.every(({ session_auth }) => ended.has(session_auth.request_idx))
    if (!known()) await running.autoscaler.next("/delete_requests/", known, 3 * sweep)
    for (const { expiration, session_auth } of created) {
      add(
        "end of a session after its expiration",
        "ms",
        subject,
        ((ended.get(session_auth.request_idx) ?? 0) - expiration) * 1000
      )
    }
  })

  await together(subjects, async (running) => {
    const { autoscaler, subject } = running
    await load({ work: "cycle", connections: 1, count: 500, port: running.port, auth: running.auth })
    for (let trial = 0; trial < (quick ? 2 : 25); trial++) {
      // Later than the spacing of reports, and in no step with anybody's ticks.
      const pause = () => sleep(1600 + random() * 1000)
      await pause()
      const session = await create(running, 1000 + trial, 60)
      await pause()
      const status = autoscaler.next("/worker_status/", ({ body }) => body.cur_load === 0)
      const deleted = autoscaler.next("/delete_requests/", () => true)
      await end(running, session)
      const answered = performance.now()
      add("release known to the autoscaler after its answer", "ms", subject, (await status).at - answered)
      add("deletion known to the autoscaler after its answer", "ms", subject, (await deleted).at - answered)
    }
  })

  return {
    title: "Punctuality",
    lines: lines(),
    targets: [ours, oursFull].flatMap((subject) => [
      ...atMost(`expiry, p99, ${subject.name}, ms`, quantile("end of a session after its expiration", subject, 0.99), 10),
      ...atMost(
        `release known, median, ${subject.name}, ms`,
        median("release known to the autoscaler after its answer", subject),
        20
      )
    ]),
    notes: ["expiry: `work_completed_at` of the delete report less the `expiration` that the client was told"]
  }
}

export const manyOpen = async ({ quick }: Bench): Promise<Row> => {
  const subjects = [ours, oursFull, theirs, bare]
  const { add, lines } = figures(subjects)
  const sizes = quick ? [1, 1000] : [1, 1000, 100_000]
  const requests = quick ? 50 : 200
  await using stack = new AsyncDisposableStack()
  const running = new Map<Subject, Running>()
  for (const subject of subjects) {
    if (subject.notRun !== undefined) continue
    running.set(subject, stack.use(await start(subject, { maxSessions: (sizes.at(-1) ?? 0) + 100 })))
  }
  for (const { auth, port } of running.values()) {
    for (const work of ["cycle", "ping", "probe"] as const) {
      await load({ work, connections: 1, count: 10 * requests, port, auth })
    }
  }

  let opened = 0
  for (const size of sizes) {
    const named = (what: string) => `${size.toLocaleString("en-US")} open: ${what}`
    for (const { auth, port } of running.values()) await load({ work: "open", connections: 16, count: size - opened, port, auth })
    opened = size
    await sleep(quick ? 1000 : 3000)
    await interleaved(subjects, quick ? 1 : 3, async (subject, round) => {
      const target = running.get(subject)
      if (target === undefined) return
      const { auth, autoscaler, pid, port } = target
      const cycles = await load({ work: "cycle", connections: 1, count: requests, port, auth })
      add(named("create"), "ms", subject, ...(cycles.latencies["/session/create"] ?? []))
      const pings = await load({ work: "ping", connections: 1, count: requests, port, auth })
      add(named("ping"), "ms", subject, ...(pings.latencies["/ping"] ?? []))
      add(named("RSS"), "MiB", subject, memory(pid).rss)
      if (!subject.reports) return
      // The event loop does nothing else while it makes a report, so what it is asked meanwhile waits.
      const probe = async (when: string) => {
        const { latencies } = await load({ work: "probe", connections: 1, seconds: 1.5, pace: 1, port, auth })
        add(named(`longest wait ${when}`), "ms", subject, Math.max(...(latencies["/session/health"] ?? [])))
      }
      await sleep(1500)
      await probe("without a report")
      const probed = probe("around a report")
      const reported = autoscaler.next("/worker_status/", () => true)
      await sleep(200)
      const session = await create(target, size + round, 60)
      const { bytes } = await reported
      await probed
      add(named("size of a report"), "kB", subject, bytes / 1000)
      await end(target, session)
    })
  }
  return { title: "Cost against open sessions", lines: lines() }
}
