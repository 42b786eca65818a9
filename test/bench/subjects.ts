/**
 * Who is measured, and how each is started: this worker as it is and with what an instance turns on, the original, and the
 * ceiling.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import * as Fs from "node:fs"
import { type AddressInfo, connect, createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type Autoscaler, signatureOf, startAutoscaler } from "./autoscaler.ts"

export const project = fileURLToPath(new URL("../..", import.meta.url))

/** All that the bench leaves on the disk; gone when it ends. */
export const folder = Fs.mkdtempSync(join(tmpdir(), "bench-"))
const children = new Set<ChildProcess>()

/** Starts a program in a process group of its own, which ends with the bench at the latest. */
export const launch = (
  command: string,
  args: ReadonlyArray<string>,
  options: { readonly cwd: string; readonly env: NodeJS.ProcessEnv; readonly input?: string; readonly log?: string }
) => {
  const log = Fs.openSync(options.log ?? "/dev/null", "a")
  const child = spawn(command, args, { ...options, detached: true, stdio: ["pipe", log, log] })
  Fs.closeSync(log)
  child.stdin?.end(options.input)
  children.add(child)
  const exit = once(child, "close").finally(() => children.delete(child))
  const stop = async () => {
    killGroup(child)
    await exit
  }
  return { pid: child.pid as number, exit, stop }
}

const killGroup = ({ pid }: ChildProcess) => {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL")
  } catch {
    // It is gone already.
  }
}

process.on("exit", () => {
  for (const child of children) killGroup(child)
  Fs.rmSync(folder, { recursive: true, force: true })
})

// Subjects run on copies. Nobody builds over them meanwhile, and nothing but the subject itself has their pages mapped: neither
// shared with the bench, which would flatter the proportional set size, nor kept in the page cache by it.
const copy = (path: string, name: string) => {
  const to = join(folder, name)
  Fs.cpSync(path, to, { recursive: true })
  return to
}
const node = copy(process.execPath, "node")
const command = join(copy(join(project, "dist"), "dist"), "null-pyworker.mjs")
const baseline = copy(join(project, "test/bench/baseline.mjs"), "baseline.mjs")

interface Program {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env?: Record<string, string>
}

export interface Subject {
  readonly name: string
  /** Why it cannot be run here. */
  readonly notRun?: string
  /** Whether it reports to the autoscaler. */
  readonly reports: boolean
  readonly signed: boolean
  readonly program: (folder: string) => Program
}

// With the flag that start_server.sh and `npm start` give it.
const ourCommand = { command: node, args: ["--max-semi-space-size=8", command, "worker"] }

export const ours: Subject = { name: "ours", reports: true, signed: false, program: () => ourCommand }

export const oursSigned: Subject = {
  name: "ours, signed",
  reports: true,
  signed: true,
  program: () => ({ ...ourCommand, env: { UNSECURED: "false", VAST_SIGNATURE: "require" } })
}

/** As an instance has it. */
export const oursFull: Subject = {
  name: "ours, signed, journal",
  reports: true,
  signed: true,
  program: (folder) => ({
    ...ourCommand,
    env: { UNSECURED: "false", VAST_SIGNATURE: "require", JOURNAL_DIR: join(folder, "journal") }
  })
}

/** A Python that has the framework, or why there is none. */
export const python = process.env.BENCH_PYTHON || process.env.VASTAI_PYTHON || join(project, ".venv/bin/python")
const versions = `
import platform
from importlib.metadata import version
from vastai import Worker
assert Worker
print(platform.python_version(), version("vastai"))
`
const asked = spawnSync(python, ["-c", versions], { encoding: "utf8" })
const [pythonVersion, vastaiVersion] = asked.status === 0 ? asked.stdout.trim().split(" ") : []
export const peer = { python: pythonVersion, vastai: vastaiVersion }

export const theirs: Subject = {
  name: "theirs",
  ...(vastaiVersion === undefined && { notRun: "no vastai" }),
  reports: true,
  signed: false,
  program: () => ({ command: python, args: [join(project, "test/bench/original.py")] })
}

export const bare: Subject = {
  name: "bare",
  reports: false,
  signed: false,
  program: () => ({ command: node, args: [baseline] })
}

// Held all at once, because one that is free again may be given a second time.
const freePorts = async (count: number) => {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"))
  await Promise.all(servers.map((server) => once(server, "listening")))
  const ports = servers.map((server) => (server.address() as AddressInfo).port)
  await Promise.all(servers.map((server) => once(server.close(), "close")))
  return ports
}

/** What an instance's environment says to a worker. */
export const instance = async (autoscaler: Autoscaler) => {
  const [port, httpPort, controlPort] = (await freePorts(3)) as [number, number, number]
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    env: {
      CONTAINER_ID: "42",
      MASTER_TOKEN: "the-master-token",
      REPORT_ADDR: autoscaler.url,
      BACKEND_HEALTH_URL: `${autoscaler.url}/health`,
      PUBLIC_IPADDR: "127.0.0.1",
      WORKER_PORT: String(port),
      [`VAST_TCP_PORT_${port}`]: String(port),
      WORKER_HTTP_PORT: String(httpPort),
      NULL_CONTROL_PORT: String(controlPort)
    }
  }
}

export const isReady = ({ body }: { readonly body: { readonly loadtime: number } }) => body.loadtime > 0

// Refused connections cost little, and say it to the millisecond.
const listening = async (port: number, gone: () => boolean) => {
  while (!gone()) {
    const socket = connect(port, "127.0.0.1")
    const open = await once(socket, "connect").then(
      () => true,
      () => false
    )
    socket.destroy()
    if (open) return performance.now()
    await new Promise((resolve) => setTimeout(resolve, 1))
  }
  return Number.NaN
}

/** Starts a subject and waits until it listens and, where it reports, until it has reported itself ready. */
export const start = async (subject: Subject, { maxSessions = 1 } = {}) => {
  const home = Fs.mkdtempSync(join(folder, "subject-"))
  const autoscaler = await startAutoscaler()
  const { env, port, url } = await instance(autoscaler)
  const program = subject.program(home)
  const ready = subject.reports ? autoscaler.next("/worker_status/", isReady) : undefined
  ready?.catch(() => {})
  const started = performance.now()
  const child = launch(program.command, program.args, {
    cwd: home,
    env: { PATH: process.env.PATH, HOME: home, ...env, UNSECURED: "true", MAX_SESSIONS: String(maxSessions), ...program.env }
  })
  const stop = async () => {
    await child.stop()
    autoscaler.close()
    Fs.rmSync(home, { recursive: true })
  }
  let gone = false
  const died = child.exit.then(([code, signal]) => {
    gone = true
    throw new Error(`${subject.name} ended with ${code ?? signal}`)
  })
  died.catch(() => {})
  try {
    const listeningAt = await Promise.race([listening(port, () => gone), died])
    const readyAt = ready === undefined ? undefined : (await Promise.race([ready, died])).at
    return {
      subject,
      pid: child.pid,
      port,
      url,
      autoscaler,
      /** `auth_data` without the numbers of a request. */
      auth: { cost: 100, endpoint: "bench", signature: subject.signed ? signatureOf(url) : "unsigned", url },
      /** Milliseconds since it was started. */
      listeningAfter: listeningAt - started,
      readyAfter: readyAt === undefined ? undefined : readyAt - started,
      stop,
      [Symbol.asyncDispose]: stop
    }
  } catch (error) {
    await stop()
    throw error
  }
}

export type Running = Awaited<ReturnType<typeof start>>
