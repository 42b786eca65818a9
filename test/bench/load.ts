/**
 * The load generator: keep-alive connections that each have one request under way, on bare sockets, because an HTTP client would
 * cost more than the servers that it is to measure. It runs in the process that plays the autoscaler too: that is one core for
 * all that is around a worker, and one for the worker.
 */
import { once } from "node:events"
import { connect } from "node:net"

export interface Job {
  readonly port: number
  /** `auth_data` without the numbers of a request. */
  readonly auth: object
  /**
   * `cycle` creates a session and ends it, `open` creates it and leaves it; `ping` and `health` are about one open session a
   * connection, `probe` about none, so that nothing is changed by it.
   */
  readonly work: "cycle" | "open" | "ping" | "health" | "probe"
  readonly connections: number
  /** Until so many are done, or for so long. */
  readonly count?: number
  readonly seconds?: number
  /** Milliseconds from one request of a connection to its next, at least. */
  readonly pace?: number
}

export interface Done {
  readonly count: number
  readonly seconds: number
  /** Milliseconds that each request took, by route. */
  readonly latencies: Readonly<Record<string, Float64Array>>
  /** How much of a core the generator itself was busy: near 1, it is the generator that was measured. */
  readonly busy: number
}

interface Answer {
  readonly status: number
  readonly body: string
}

const head = /\r\n\r\n/
const contentLength = /\r\ncontent-length: *(\d+)/i

/** A connection that is asked one thing at a time. */
const open = async (port: number) => {
  let answered: (answer: Answer) => void = () => {}
  let broken: (error: Error) => void = () => {}
  let text = ""
  const heard = (length: number, buffer: Uint8Array) => {
    text += (buffer as Buffer).toString("latin1", 0, length)
    const end = text.search(head)
    if (end < 0 || text.length < end + 4 + Number(contentLength.exec(text)?.[1] ?? 0)) return true
    const answer = { status: Number(text.slice(9, 12)), body: text.slice(end + 4) }
    text = ""
    answered(answer)
    return true
  }
  const onread = { buffer: Buffer.allocUnsafe(2 ** 14), callback: heard }
  const socket = connect({ port, host: "127.0.0.1", noDelay: true, onread })
  socket.on("error", (error) => broken(error))
  socket.on("close", () => broken(new Error("the connection was closed")))
  await once(socket, "connect")
  return {
    ask: (request: string) =>
      new Promise<Answer>((resolve, reject) => {
        answered = resolve
        broken = reject
        socket.write(request, "latin1")
      }),
    close: () => socket.destroy()
  }
}

const post = (path: string, body: string) =>
  `POST ${path} HTTP/1.1\r\nhost: worker\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`

// Unique over all jobs, and all of the same length. The original keys what it works on by them.
let lastIndex = 100_000_000

const run = async ({
  auth,
  connections,
  count = Number.POSITIVE_INFINITY,
  pace = 0,
  port,
  seconds,
  work
}: Job): Promise<Done> => {
  const latencies: Record<string, Array<number>> = {}
  const authText = JSON.stringify(auth).slice(0, -1)
  const newAuth = () => `${authText},"reqnum":${++lastIndex},"request_idx":${lastIndex}}`

  const sleep = stayAwake()
  const sockets = await Promise.all(Array.from({ length: connections }, () => open(port)))
  const began = performance.now()
  const until = seconds === undefined ? Number.POSITIVE_INFINITY : began + seconds * 1000
  let begun = 0
  let finished = 0
  const more = () => performance.now() < until && begun++ < count
  // What ends after the time is up was not done in it.
  const finish = () => {
    if (performance.now() < until) finished++
  }

  await Promise.all(
    sockets.map(async ({ ask, close }) => {
      const timed = async (path: string, body: string, expected: number) => {
        const asked = performance.now()
        const answer = await ask(post(path, body))
        const took = performance.now() - asked
        if (answer.status !== expected) throw new Error(`${path} answered ${answer.status} ${answer.body}`)
        latencies[path] ??= []
        latencies[path].push(took)
        if (took < pace) await new Promise((resolve) => setTimeout(resolve, pace - took))
        return answer.body
      }
      const create = async () => {
        const auth = newAuth()
        const body = await timed("/session/create", `{"auth_data":${auth},"payload":{"lifetime":3600}}`, 201)
        return { id: /"session_id": *"([^"]+)"/.exec(body)?.[1], auth }
      }
      type Session = Awaited<ReturnType<typeof create>>
      const key = ({ auth, id }: Session) => `{"session_id":"${id}","session_auth":${auth}}`
      const end = (session: Session) => timed("/session/end", key(session), 200)

      const works: Record<Job["work"], () => Promise<void>> = {
        cycle: async () => {
          while (more()) {
            await end(await create())
            finish()
          }
        },
        open: async () => {
          while (more()) {
            await create()
            finish()
          }
        },
        ping: async () => {
          const session = await create()
          const body = `{"auth_data":${session.auth},"payload":{},"session_id":"${session.id}"}`
          while (more()) {
            await timed("/ping", body, 200)
            finish()
          }
          await end(session)
        },
        health: async () => {
          const session = await create()
          const body = key(session)
          while (more()) {
            await timed("/session/health", body, 200)
            finish()
          }
          await end(session)
        },
        probe: async () => {
          while (more()) {
            await timed("/session/health", '{"session_id":"none","session_auth":{}}', 200)
            finish()
          }
        }
      }
      await works[work]()
      close()
    })
  )
  const idle = sleep()
  const took = Math.min(performance.now(), until) - began
  return {
    count: finished,
    seconds: took / 1000,
    latencies: Object.fromEntries(Object.entries(latencies).map(([path, list]) => [path, Float64Array.from(list)])),
    busy: 1 - idle / took
  }
}

/** A turn of the event loop in which nothing is to be done takes less than this, in milliseconds. */
const emptyTurn = 0.006

// Whoever writes to a process that sleeps pays for waking it, and the slower a server, the more often the generator would sleep.
const stayAwake = () => {
  let awake = true
  let idle = 0
  let before = performance.now()
  const turn = () => {
    const now = performance.now()
    if (now - before < emptyTurn) idle += now - before
    before = now
    if (awake) setImmediate(turn)
  }
  turn()
  return () => {
    awake = false
    return idle
  }
}

let last: Promise<unknown> = Promise.resolve()

/** Does one job at a time, in the order in which they are asked for: two would have the core to share. */
export const load = (job: Job): Promise<Done> => {
  const next = last.then(() => run(job))
  last = next.catch(() => {})
  return next
}
