import { once } from "node:events"
import { request } from "node:http"
import { connect, type Socket } from "node:net"
import { assert, describe, it } from "@effect/vitest"
import { listen, post, startReadyWorker } from "./harness.ts"

const create = { auth_data: { url: "http://127.0.0.1", request_idx: 1 }, payload: { lifetime: 60 } }

/** A connection that says `text`, and all that it is answered until the worker closes it. */
const saying = (port: number, text: string) => {
  const socket = connect(port, "127.0.0.1")
  let answer = ""
  socket.on("data", (chunk) => {
    answer += chunk
  })
  socket.on("error", () => {})
  socket.write(text)
  const closed = once(socket, "close").then(() => ({ answer, at: Date.now() }))
  return { socket, closed }
}

const begun = "POST /session/create HTTP/1.1\r\nhost: x\r\n"

describe("a hostile network", () => {
  // Real time, because it is Node's own clock that cuts them; together, because that takes 20 s.
  it("has who is too slow cut, with a 408 where there is a request to answer, and hurts nobody else", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const silent = saying(worker.port, "")
    const slowHeaders = saying(worker.port, "POST /session/create HTTP/1.1\r\nhost: x\r\n")
    const slowBody = saying(worker.port, "POST /session/create HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    const dripping = setInterval(() => {
      slowHeaders.socket.write("x-more: 1\r\n")
      slowBody.socket.write(" ")
    }, 500)
    const started = Date.now()
    const { body, status } = await post(`${worker.url}/session/create`, create)
    assert.strictEqual(status, 201)
    const answers = await Promise.all([silent.closed, slowHeaders.closed, slowBody.closed])
    clearInterval(dripping)
    for (const { answer, at } of answers) {
      assert.isBelow(at - started, 25_000)
      if (answer === "") continue
      assert.match(answer, /^HTTP\/1.1 408 /)
      assert.match(answer, /\{"error":"request not received in time"\}$/)
    }
    assert.isTrue(answers[1]?.answer !== "" && answers[2]?.answer !== "")
    const key = { session_id: body.session_id, session_auth: create.auth_data }
    assert.strictEqual((await post(`${worker.url}/session/end`, key)).status, 200)
  })

  it("leaves room for a request beside 5,000 connections that do nothing", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const idle: Array<Socket> = []
    while (idle.length < 5000) {
      const some = Array.from({ length: 500 }, () => connect(worker.port, "127.0.0.1"))
      await Promise.all(some.map((socket) => once(socket, "connect")))
      for (const socket of some) socket.on("error", () => {})
      idle.push(...some)
    }
    assert.strictEqual((await post(`${worker.url}/session/create`, create)).status, 201)
    assert.strictEqual((await post(`${worker.control}/release`, "")).body.released, true)
    for (const socket of idle) socket.destroy()
  })

  it("has a body that is too long refused before it is all there", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler, { MAX_BODY_BYTES: "1000" })
    const send = (headers: Record<string, string>, ...chunks: ReadonlyArray<string>) =>
      new Promise<readonly [number | undefined, string]>((resolve, reject) => {
        const asked = request(`${worker.url}/session/create`, { method: "POST", headers, agent: false }, (response) => {
          let text = ""
          response.on("data", (chunk) => {
            text += chunk
          })
          response.on("end", () => {
            resolve([response.statusCode, text])
            asked.destroy()
          })
        })
        asked.on("error", reject)
        for (const chunk of chunks) asked.write(chunk)
      })
    const refused: readonly [number, string] = [413, '{"error":"body too large"}']
    assert.deepStrictEqual(await send({ "content-length": "10000000000" }, "{"), refused)
    assert.deepStrictEqual(await send({ "transfer-encoding": "chunked" }, "x".repeat(600), "x".repeat(600)), refused)
    assert.strictEqual((await post(`${worker.url}/session/create`, create)).status, 201)
  })

  it.each([
    { what: "another protocol", text: "no HTTP at all\r\n\r\n", status: 400 },
    { what: "a negative length", text: `${begun}content-length: -1\r\n\r\n`, status: 400 },
    { what: "two lengths", text: `${begun}content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}`, status: 400 },
    { what: "endless headers", text: `${begun}x: ${"y".repeat(20_000)}\r\n\r\n`, status: 431 }
  ])("gets JSON even for what is no request: $what", async ({ status, text }) => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    const { answer } = await saying(worker.port, text).closed
    assert.match(answer, new RegExp(`^HTTP/1.1 ${status} `))
    assert.match(answer, /\{"error":"[^"]+"\}$/)
    assert.strictEqual((await post(`${worker.url}/session/create`, create)).status, 201)
  })
})

describe("the control server", () => {
  it("is for programs of the machine, not for web pages in a browser on it", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler)
    await post(`${worker.url}/session/create`, create)
    const { port } = new URL(worker.control)
    const release = (headers: string) =>
      saying(Number(port), `POST /release HTTP/1.1\r\n${headers}connection: close\r\n\r\n`).closed
    for (const headers of [
      "host: evil.example\r\n",
      `host: 127.0.0.1.evil.example:${port}\r\n`,
      "host: \r\n",
      `host: 127.0.0.1:${port}\r\norigin: http://evil.example\r\n`,
      `host: 127.0.0.1:${port}\r\norigin: null\r\n`,
      `host: 127.0.0.1:${port}\r\norigin: http://127.0.0.1:${port}\r\n`
    ]) {
      const { answer } = await release(headers)
      assert.match(answer, /^HTTP\/1.1 403 [\s\S]*\{"error":"[^"]+"\}$/, headers)
    }
    for (const host of ["localhost", `LOCALHOST:${port}`, "127.0.0.1", `127.8.8.8:${port}`, `[::1]:${port}`]) {
      assert.match((await release(`host: ${host}\r\n`)).answer, /^HTTP\/1.1 200 /, host)
    }
    const key = { session_id: "unknown", session_auth: {} }
    assert.strictEqual((await post(`${worker.url}/session/end`, key)).status, 400)
  })
})
