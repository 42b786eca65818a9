/**
 * The rest of the world, and unfaithful: an autoscaler at two addresses and a receiver of callbacks that drop connections,
 * take their time, answer 500, break off, talk nonsense, and go away for a while.
 */
import { once } from "node:events"
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import { between, type Random, weighted } from "./Script.ts"

/** What becomes of a request. */
export type Answer = "well" | "garbled" | "delayed" | "dropped" | "error" | "cut"

const faults = { garbled: 2, delayed: 2, dropped: 2, error: 2, cut: 2 } as const

// biome-ignore lint/suspicious/noExplicitAny: bodies off the wire, looked at field by field
export type Json = any

/** A request that was received. */
export interface Note {
  /** Epoch seconds. */
  readonly at: number
  readonly path: string
  readonly key: string | undefined
  readonly body: Json
  readonly answer: Answer
  /** When it was answered with 2xx, to the end. What the answer says does not matter on this wire, so nonsense will do. */
  acceptedAt: number | undefined
}

/** A server that notes each request, and answers as the weather is. */
export class Unfaithful {
  /** The share of its answers that are not what they should be. */
  weather = 0
  readonly url: string
  readonly #port: number
  readonly #random: Random
  readonly #noted: (note: Note) => void
  #server: Server | undefined
  #comesBack: NodeJS.Timeout | undefined

  constructor(port: number, random: Random, noted: (note: Note) => void) {
    this.#port = port
    this.#random = random
    this.#noted = noted
    this.url = `http://127.0.0.1:${port}`
  }

  async listen(): Promise<void> {
    clearTimeout(this.#comesBack)
    if (this.#server !== undefined) return
    const server = createServer((request, response) => this.#receive(request, response))
    this.#server = server
    server.listen(this.#port, "127.0.0.1")
    await once(server, "listening")
  }

  close(): void {
    clearTimeout(this.#comesBack)
    this.#server?.close()
    this.#server?.closeAllConnections()
    this.#server = undefined
  }

  /** Refuses connections for so many milliseconds, and breaks off what is under way. */
  refuse(milliseconds: number): void {
    this.close()
    this.#comesBack = setTimeout(() => this.listen(), milliseconds)
  }

  #receive(request: IncomingMessage, response: ServerResponse): void {
    let text = ""
    request.on("data", (chunk) => {
      text += chunk
    })
    request.on("end", () => {
      const note: Note = {
        at: Date.now() / 1000,
        path: request.url ?? "",
        key: request.headers["idempotency-key"]?.toString(),
        body: JSON.parse(text),
        answer: this.#random() < this.weather ? weighted(this.#random, faults) : "well",
        acceptedAt: undefined
      }
      this.#noted(note)
      this.#answer(note, response)
    })
  }

  #answer(note: Note, response: ServerResponse): void {
    const random = this.#random
    // Whoever has gone away meanwhile is not answered, and so it is not accepted.
    const accept = (body: string) => {
      response.on("finish", () => {
        note.acceptedAt = Date.now() / 1000
      })
      response.end(body)
    }
    switch (note.answer) {
      case "well":
        accept("{}")
        return
      case "garbled":
        accept(String.fromCharCode(...Array.from({ length: 40 }, () => between(random, 0, 256))))
        return
      case "delayed": {
        const timer = setTimeout(() => accept("{}"), between(random, 20, 1400))
        response.on("close", () => clearTimeout(timer))
        return
      }
      case "dropped":
        response.socket?.destroy()
        return
      case "error":
        response.writeHead(random() < 0.5 ? 500 : 503).end('{"error": "not now"}')
        return
      case "cut":
        // One of the two ways in which an answer says how long it is.
        if (random() < 0.5) response.setHeader("content-length", "100")
        response.write("{", () => response.socket?.destroy())
    }
  }
}
