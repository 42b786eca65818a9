/**
 * HTTP/1.1 on a bare socket: sends any bytes, and reads what is answered as it comes.
 */
import { once } from "node:events"
import { createConnection } from "node:net"

export interface Answer {
  /** 0 where what came is no HTTP. */
  readonly status: number
  readonly headers: ReadonlyMap<string, string>
  readonly body: Buffer
}

/** An answer, or why there is none: the server hung up, or said nothing in time. */
export type Outcome = Answer | "closed" | "silence"

export interface Connection {
  readonly send: (bytes: Buffer) => void
  /** The next answer. One to a HEAD has no body, whatever its headers say. */
  readonly next: (isHead: boolean, milliseconds: number) => Promise<Outcome>
  /** Says that nothing more will be sent. */
  readonly finish: () => void
  readonly close: () => void
}

export const connect = async (port: number): Promise<Connection> => {
  const socket = createConnection({ port, host: "127.0.0.1", noDelay: true })
  let received: Buffer = Buffer.alloc(0)
  let closed = false
  let look = () => {}
  // An error is followed by a close, which is all that matters here.
  socket.on("error", () => {})
  socket.on("data", (chunk) => {
    received = received.length === 0 ? chunk : Buffer.concat([received, chunk])
    look()
  })
  for (const event of ["end", "close"]) {
    socket.on(event, () => {
      closed = true
      look()
    })
  }
  await Promise.race([once(socket, "connect"), once(socket, "close")])

  return {
    send: (bytes) => void socket.write(bytes),
    next: (isHead, milliseconds) =>
      new Promise((resolve) => {
        const settle = (outcome: Outcome) => {
          clearTimeout(timer)
          clearImmediate(immediate)
          look = () => {}
          resolve(outcome)
        }
        let immediate: NodeJS.Immediate | undefined
        // What has come while this process was busy is looked at first.
        const timer = setTimeout(() => {
          immediate = setImmediate(() => settle("silence"))
        }, milliseconds)
        look = () => {
          const read = parse(received, isHead, closed)
          if (read === undefined) return closed ? settle("closed") : undefined
          received = received.subarray(read.end)
          settle(read.answer)
        }
        look()
      }),
    finish: () => void socket.end(),
    close: () => void socket.destroy()
  }
}

const blankLine = "\r\n\r\n"

/** The first answer in these bytes, and where it ends; nothing while it is not whole. */
const parse = (
  bytes: Buffer,
  isHead: boolean,
  closed: boolean
): { readonly answer: Answer; readonly end: number } | undefined => {
  let start = 0
  while (true) {
    const headEnd = bytes.indexOf(blankLine, start)
    if (headEnd === -1) return
    const [statusLine = "", ...lines] = bytes.toString("latin1", start, headEnd).split("\r\n")
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(statusLine)?.[1] ?? 0)
    start = headEnd + blankLine.length
    if (status === 100) continue
    const headers = new Map(lines.map((line) => [line.split(":", 1)[0]?.toLowerCase() ?? "", line.replace(/^.*?:\s*/, "")]))
    const body = bodyOf(bytes, start, isHead || status < 200 ? "none" : framingOf(headers), closed)
    return body && { answer: { status, headers, body: body.bytes }, end: body.end }
  }
}

const framingOf = (headers: ReadonlyMap<string, string>) => {
  if (headers.get("transfer-encoding") === "chunked") return "chunked"
  const length = headers.get("content-length")
  return length === undefined ? "until closed" : Number(length)
}

const bodyOf = (bytes: Buffer, start: number, framing: "none" | "chunked" | "until closed" | number, closed: boolean) => {
  if (framing === "none") return { bytes: Buffer.alloc(0), end: start }
  if (framing === "until closed") return closed ? { bytes: bytes.subarray(start), end: bytes.length } : undefined
  if (framing !== "chunked") {
    const end = start + framing
    return end > bytes.length ? undefined : { bytes: bytes.subarray(start, end), end }
  }
  const chunks: Array<Buffer> = []
  for (let at = start; ; ) {
    const lineEnd = bytes.indexOf("\r\n", at)
    if (lineEnd === -1) return
    const size = Number.parseInt(bytes.toString("latin1", at, lineEnd), 16)
    const end = lineEnd + 2 + size + 2
    if (Number.isNaN(size) || end > bytes.length) return
    if (size === 0) return { bytes: Buffer.concat(chunks), end }
    chunks.push(bytes.subarray(lineEnd + 2, lineEnd + 2 + size))
    at = end
  }
}

/** The server said with this answer that it closes the connection. */
export const isLast = (answer: Answer) => answer.headers.get("connection") === "close"

/** Keep-alive connections to several ports, one request at a time on each. */
export const makeLane = () => {
  const connections = new Map<number, Connection>()
  const latest = new Map<number, Buffer>()
  return {
    /** The request after which the connection to this port was kept. */
    before: (port: number) => (connections.has(port) ? latest.get(port) : undefined),
    exchange: async (port: number, bytes: Buffer, isHead: boolean, milliseconds: number): Promise<Outcome> => {
      const connection = connections.get(port) ?? (await connect(port))
      connections.set(port, connection)
      latest.set(port, bytes)
      connection.send(bytes)
      const outcome = await connection.next(isHead, milliseconds)
      if (typeof outcome === "string" || isLast(outcome)) {
        connection.close()
        connections.delete(port)
      }
      return outcome
    },
    close: () => {
      for (const connection of connections.values()) connection.close()
    }
  }
}
export type Lane = ReturnType<typeof makeLane>
