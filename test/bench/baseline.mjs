// The ceiling: the least that a server on node:http can do and still keep sessions. Nothing is checked, reported or timed.
import { randomBytes } from "node:crypto"
import { createServer } from "node:http"

const sessions = new Map()

const routes = {
  "/session/create": ({ auth_data, payload }) => {
    const session_id = randomBytes(16).toString("hex")
    const expiration = Date.now() / 1000 + payload.lifetime
    sessions.set(session_id, { auth_data, expiration })
    return [201, { session_id, expiration }]
  },
  "/session/end": ({ session_id }) =>
    sessions.delete(session_id) ? [200, { ended: true, removed_session: session_id }] : [400, { error: "not found" }],
  "/session/health": ({ session_id }) => [200, { ok: sessions.has(session_id) }],
  "/ping": () => [200, { result: { ok: true } }]
}

createServer((request, response) => {
  let text = ""
  request.setEncoding("utf8")
  request.on("data", (chunk) => {
    text += chunk
  })
  request.on("end", () => {
    const [status, body] = routes[request.url](JSON.parse(text))
    const answer = JSON.stringify(body)
    // Without a length the answer would go out in chunks, and cost a tenth more.
    const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(answer) }
    response.writeHead(status, headers).end(answer)
  })
}).listen(Number(process.env.WORKER_PORT), "127.0.0.1")
