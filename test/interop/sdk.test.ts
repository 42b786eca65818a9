/**
 * The real Python SDK, unchanged but for its URLs, against the embedded control plane and the worker processes that it starts.
 *
 * Nothing is installed here: a Python that has the `vastai` package is `$VASTAI_PYTHON`, or `.venv/bin/python` in the project.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { connect, createServer } from "node:net"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { beforeAll, describe, expect, it } from "vitest"

const project = fileURLToPath(new URL("../..", import.meta.url))
const python = process.env.VASTAI_PYTHON || join(project, ".venv/bin/python")

const installed = spawnSync(python, ["-c", "import vastai.serverless.client.client"]).status === 0
const missing = `the Python SDK is not tested: ${python} cannot import vastai; set VASTAI_PYTHON to one that can`
if (!installed) console.warn(missing)
if (!installed && process.env.CI) it("there is a Python SDK to test with", () => expect.fail(missing))

/** What sdk.py checks, in this order. */
const checks = [
  "get_endpoint finds the endpoint by its name, and no other",
  "get_workers is empty before anybody needs a worker",
  "a request without a session waits for a worker and is answered",
  "session opens a session on a worker over TLS, verified against our root",
  "a client that does not know our root refuses the worker",
  "is_open is true for an open session",
  "a ping answers, and gives the session its whole lifetime anew",
  "get_session gives the session back by id and auth_data",
  "/session/get tells what the session's closing will call",
  "get_workers lists the worker with its load while it is reserved",
  "a wrong session_auth is refused with 401",
  "a request to an unknown session is answered 410",
  "an occupied worker refuses a signed create with 429",
  "session times out while the only worker is occupied",
  "close lets in the session that waits for the worker",
  "closing calls on_close_route once, with the payload and the session's id",
  "a closed session is closed for every handle to it",
  "the worker's load falls to 0 when its session has closed",
  "a forged signature is refused with 401 and takes no slot",
  "a field of auth_data that nobody knows survives",
  "a session whose lifetime ran out is noticed",
  "the worker keeps an idle connection longer than the SDK does",
  "a ready worker is one by the SDK's own rule"
]

interface Check {
  readonly check: string
  readonly ok: boolean
}

interface LogLine {
  readonly message: string
  readonly annotations: { readonly request_idx: number; readonly status: string; readonly reason: string; readonly url: string }
}

const seconds = (count: number) => new Promise((resolve) => setTimeout(resolve, count * 1000))

const freePort = async () => {
  const server = createServer().listen(0, "127.0.0.1")
  await once(server, "listening")
  const address = server.address()
  server.close()
  return typeof address === "object" && address !== null ? address.port : 0
}

/** Starts a program and keeps the lines that it prints as JSON. The caller's own settings for workers and SDK do not reach it. */
const start = <Line>(program: string, args: ReadonlyArray<string>, settings: Record<string, string> = {}) => {
  const { HOME, PATH, TMPDIR } = process.env
  const child = spawn(program, args, { env: { HOME, PATH, TMPDIR, ...settings }, stdio: ["ignore", "pipe", "pipe"] })
  const lines: Array<Line> = []
  const errors: Array<string> = []
  createInterface(child.stdout).on("line", (line) => line.startsWith("{") && lines.push(JSON.parse(line)))
  createInterface(child.stderr).on("line", (line) => errors.push(line))
  return { child, lines, errors, closed: once(child, "close") }
}

/** Ends a control plane, and the workers that it leaves behind if it does not end by itself. */
const stop = async ({ child, closed }: { readonly child: ChildProcess; readonly closed: Promise<unknown> }) => {
  child.kill()
  await Promise.race([closed, seconds(12)])
  if (child.exitCode !== null || child.signalCode !== null) return
  const { stdout } = spawnSync("pgrep", ["-P", String(child.pid)], { encoding: "utf8" })
  child.kill("SIGKILL")
  for (const pid of stdout.split("\n").filter(Boolean)) process.kill(Number(pid), "SIGKILL")
  await closed
}

const untilItAnswers = async (url: string) => {
  for (let attempt = 0; attempt < 100; attempt++) {
    const answer = await fetch(`${url}/pubkey/`).catch(() => undefined)
    if (answer?.ok) return
    await seconds(0.1)
  }
  throw new Error("the control plane does not answer")
}

/** Plays sdk.py to its end with a control plane of its own, whose only worker is also routed to when it is occupied. */
const play = async (clientClass: string) => {
  const port = await freePort()
  const command = join(project, "dist/null-pyworker.mjs")
  const limits = ["--max-workers", "1", "--max-queue-time", "1", "--inactivity-timeout", "60"]
  const controlPlane = start<LogLine>(process.execPath, [command, "local", "--tls", "--port", String(port), ...limits], {
    LOG_FORMAT: "json",
    LOG_LEVEL: "debug"
  })
  try {
    const url = `http://127.0.0.1:${port}`
    await untilItAnswers(url)
    const sdk = start<Check>(python, [fileURLToPath(new URL("sdk.py", import.meta.url)), clientClass, url])
    const tooLong = setTimeout(() => sdk.child.kill("SIGKILL"), 60_000)
    await sdk.closed
    clearTimeout(tooLong)
    await stop(controlPlane)
    return { sdk, controlPlane, log: controlPlane.lines }
  } finally {
    await stop(controlPlane)
  }
}

const clientClasses = ["Serverless", "CoroutineServerless"]

describe.skipIf(!installed)("the Python SDK", () => {
  const played = new Map<string, Awaited<ReturnType<typeof play>>>()

  beforeAll(async () => {
    await Promise.all(clientClasses.map(async (clientClass) => played.set(clientClass, await play(clientClass))))
  }, 90_000)

  describe.each(clientClasses)("%s", (clientClass) => {
    const scenario = () => played.get(clientClass) ?? expect.fail("not played")

    it.each(checks)("%s", (check) => {
      const { sdk } = scenario()
      const found = sdk.lines.find((line) => line.check === check)
      expect(found, `not checked; the SDK said:\n${sdk.errors.join("\n")}`).toBeDefined()
      expect(found).toEqual({ check, ok: true })
    })

    it("checks nothing else and ends well", () => {
      const { sdk } = scenario()
      expect(checks).toEqual(expect.arrayContaining(sdk.lines.map(({ check }) => check)))
      expect(sdk.child.exitCode).toBe(0)
    })

    it("leaves every request done as Success to the control plane, but for those that met an occupied worker", () => {
      const { log } = scenario()
      const about = (message: string) => log.filter((line) => line.message === message).map((line) => line.annotations)
      const done = (status: string) => about("request done").flatMap((end) => (end.status === status ? [end.request_idx] : []))
      const sessions = about("session opened").map((session) => session.request_idx)
      const withoutSession = 1
      expect(sessions).toHaveLength(4)
      expect(done("Success").sort()).toEqual([withoutSession, ...sessions].sort())
      expect(about("session closed").map(({ reason }) => reason)).toEqual(["client", "client", "client", "expired"])
      // One by hand, and at least one that the SDK itself was given and tried again.
      expect(new Set(done("Rejected")).size).toBeGreaterThan(1)
      expect([...done("Cancelled"), ...done("Error")]).toEqual([])
    })

    it("leaves a control plane that ends when told, and its worker with it", async () => {
      const { controlPlane, log } = scenario()
      expect(controlPlane.child.exitCode, controlPlane.errors.join("\n")).toBe(0)
      const ready = log.filter(({ message }) => message === "worker ready")
      expect(ready).toHaveLength(1)
      for (const { annotations } of ready) {
        const connected = once(connect(Number(new URL(annotations.url).port), "127.0.0.1"), "connect")
        await expect(connected).rejects.toMatchObject({ code: "ECONNREFUSED" })
      }
    })
  })
})
