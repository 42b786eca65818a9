/**
 * The built command as real processes, and the rest of the world as a server on loopback that takes notes.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http"
import { type AddressInfo, createServer as createTcpServer } from "node:net"
import { fileURLToPath } from "node:url"

export const command = fileURLToPath(new URL("../../dist/null-pyworker.mjs", import.meta.url))

// biome-ignore lint/suspicious/noExplicitAny: bodies off the wire, asserted on field by field
type Json = any

export interface Note {
  readonly at: number
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly body: Json
}

/** Listens, on any port or this one, notes each request, and answers as told: 200 and `{}` unless told otherwise. */
export const listen = async (
  answer: (note: Note, response: ServerResponse) => void = (_, response) => response.end("{}"),
  port = 0
) => {
  const notes: Array<Note> = []
  const server = createServer((request: IncomingMessage, response) => {
    let text = ""
    request.on("data", (chunk) => {
      text += chunk
    })
    request.on("end", () => {
      const body = text === "" ? undefined : JSON.parse(text)
      const note = { at: Date.now(), path: request.url ?? "", headers: request.headers, body }
      notes.push(note)
      answer(note, response)
    })
  })
  server.listen(port, "127.0.0.1")
  await once(server, "listening")
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    notes,
    to: (path: string) => notes.filter((note) => note.path === path),
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
    }
  }
}

export const freePort = async () => {
  const server = createTcpServer()
  server.listen(0, "127.0.0.1")
  await once(server, "listening")
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, "close")
  return port
}

/** Waits for something to come true, because what happens in another process cannot be waited for otherwise. */
export const eventually = async <A>(
  what: string,
  look: () => A | undefined | false | Promise<A | undefined | false>
): Promise<A> => {
  const deadline = Date.now() + 20_000
  while (Date.now() < deadline) {
    const found = await look()
    if (found !== undefined && found !== false) return found
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  throw new Error(`never happened: ${what}`)
}

export interface Run {
  readonly process: ChildProcess
  readonly output: () => string
  /** The exit code, or the signal. */
  readonly exit: Promise<number | string>
  readonly stop: (signal: NodeJS.Signals) => Promise<number | string>
  readonly [Symbol.asyncDispose]: () => Promise<void>
}

/** Runs the built command with nothing but this environment. */
export const run = (args: ReadonlyArray<string>, environment: Record<string, string> = {}): Run =>
  launch(process.execPath, [command, ...args], environment)

/** Runs a program with nothing but this environment. */
export const launch = (program: string, args: ReadonlyArray<string>, environment: Record<string, string>): Run => {
  const child = spawn(program, args, { env: { PATH: process.env.PATH, ...environment } })
  let output = ""
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (chunk) => {
      output += chunk
    })
  }
  const exit = once(child, "close").then(([code, signal]) => code ?? signal)
  const stop = (signal: NodeJS.Signals) => {
    child.kill(signal)
    return exit
  }
  return {
    process: child,
    output: () => output,
    exit,
    stop,
    [Symbol.asyncDispose]: async () => {
      await stop("SIGKILL")
    }
  }
}

export const post = async (url: string, body: unknown, headers: Record<string, string> = {}) => {
  const response = await fetch(url, {
    method: "POST",
    body: typeof body === "string" ? body : JSON.stringify(body),
    headers
  })
  const text = await response.text()
  return { status: response.status, body: (text === "" ? undefined : JSON.parse(text)) as Json }
}

/** A worker on ports of its own that reports to `autoscaler`; not yet ready. It is the null worker unless `program` is another, run by Node unless
 * by `shell`. */
export const startWorker = async (
  autoscaler: { readonly url: string },
  environment: Record<string, string> = {},
  program: ReadonlyArray<string> = [command, "worker"],
  shell = process.execPath
) => {
  const [port, httpPort, controlPort] = [await freePort(), await freePort(), await freePort()]
  const worker = launch(shell, program, {
    CONTAINER_ID: "42",
    MASTER_TOKEN: "the-master-token",
    REPORT_ADDR: autoscaler.url,
    PUBLIC_IPADDR: "127.0.0.1",
    WORKER_PORT: String(port),
    [`VAST_TCP_PORT_${port}`]: String(port),
    WORKER_HTTP_PORT: String(httpPort),
    NULL_CONTROL_PORT: String(controlPort),
    UNSECURED: "true",
    LOG_LEVEL: "debug",
    ...environment
  })
  return {
    ...worker,
    url: `http://127.0.0.1:${port}`,
    plain: `http://127.0.0.1:${httpPort}`,
    control: `http://127.0.0.1:${controlPort}`,
    port
  }
}

/** A worker that has reported itself ready. */
export const startReadyWorker = async (
  autoscaler: Awaited<ReturnType<typeof listen>>,
  environment: Record<string, string> = {},
  program?: ReadonlyArray<string>,
  shell?: string
) => {
  const worker = await startWorker(autoscaler, environment, program, shell)
  await eventually("ready", () =>
    autoscaler.to("/worker_status/").some(({ body }) => body.url === worker.url && body.loadtime > 0)
  ).catch((error) => Promise.reject(new Error(`${error.message}\n${worker.output()}`)))
  return worker
}
