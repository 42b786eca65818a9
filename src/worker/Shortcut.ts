/**
 * The way of a `JsonRoute` past Effect's HTTP server: from Node's request to the route's answer and back.
 *
 * Sessions come and go by these routes, and a router, a request and a response made for anything that HTTP can be cost more
 * than all that a session is. So what is plain, a body whose length is known and not too long, is answered here, and the rest
 * goes the long way to the same answers.
 */
import type { IncomingMessage, RequestListener, ServerResponse } from "node:http"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { JsonRoute } from "./JsonRoute.ts"
import type { Answer } from "./Refusals.ts"

/** A request that needs nothing of a server but to be read and answered. */
const isPlain = ({ headers, method }: IncomingMessage, maxBodyBytes: number) =>
  method === "POST" && headers.host !== undefined && Number(headers["content-length"]) <= maxBodyBytes

const utf8 = new TextDecoder()

const send = (response: ServerResponse, { body, status }: Answer) => {
  const text = JSON.stringify(body)
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(text) }
  response.writeHead(status, headers).end(text)
}

/** Answers plain requests to these routes, in fibers that end with the scope, and leaves the others to `theLongWay`. */
export const make = Effect.fnUntraced(function* (
  routes: ReadonlyArray<JsonRoute>,
  { maxBodyBytes, theLongWay }: { readonly maxBodyBytes: number; readonly theLongWay: RequestListener }
) {
  const answers = new Map<string | undefined, JsonRoute["answer"]>(routes.map(({ answer, path }) => [path, answer]))
  const scope = yield* Effect.scope
  const run = Effect.runForkWith(yield* Effect.context())

  return (request: IncomingMessage, response: ServerResponse): void => {
    const answer = answers.get(request.url)
    if (answer === undefined || !isPlain(request, maxBodyBytes)) {
      theLongWay(request, response)
      return
    }
    const chunks: Array<Buffer> = []
    request.on("data", (chunk) => chunks.push(chunk))
    request.on("end", () => {
      // The answer to an earlier request has ended the connection: nobody would hear of what is done now.
      if (!request.socket.writable) return
      const body = utf8.decode(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks))
      const fiber = Fiber.runIn(run(answer(body)), scope)
      fiber.addObserver((exit) => (Exit.isSuccess(exit) ? send(response, exit.value) : response.destroy()))
    })
  }
})
