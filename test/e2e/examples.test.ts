import { once } from "node:events"
import { mkdtemp, rm, utimes, writeFile } from "node:fs/promises"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { eventually, listen, post, startReadyWorker, startWorker } from "./harness.ts"

const example = (name: string) => [fileURLToPath(new URL(`../examples/${name}.ts`, import.meta.url))]

const temporary = async () => {
  const path = await mkdtemp(join(tmpdir(), "example-"))
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) }
}

const request = (payload: object, more: object = {}) => ({
  auth_data: { url: "http://127.0.0.1", request_idx: 1 },
  payload,
  ...more
})

describe("the examples", () => {
  it("serve a request by a function in the worker", async () => {
    await using autoscaler = await listen()
    await using worker = await startReadyWorker(autoscaler, {}, example("in-process"))
    assert.deepStrictEqual(await post(`${worker.url}/count`, request({ text: "one two  three" })), {
      status: 200,
      body: { result: { words: 3 } }
    })
    const deleted = await eventually("deleted", () => autoscaler.to("/delete_requests/")[0])
    assert.deepInclude(deleted.body.requests[0], { request_idx: 1, status: "Success" })
    assert.strictEqual(await worker.stop("SIGTERM"), 0)
  })

  it("pass a model's stream on as it comes, and cancel it when the client goes away", async () => {
    await using folder = await temporary()
    const log = join(folder.path, "model.log")
    let hungUp = 0
    // Says one thing a step, and the next only when told.
    let next: () => void = () => {}
    const model: Server = createServer((asked, response) => {
      response.on("close", () => {
        if (!response.writableFinished) hungUp += 1
      })
      asked.resume().on("end", () => {
        response.writeHead(200, { "content-type": "text/event-stream" })
        response.write('data: {"delta":"é"}\n\n')
        next = () => response.end("data: [DONE]\n\n")
      })
    }).listen(0, "127.0.0.1")
    await once(model, "listening")
    await using autoscaler = await listen()
    await using worker = await startWorker(
      autoscaler,
      { MODEL_URL: `http://127.0.0.1:${(model.address() as AddressInfo).port}`, MODEL_LOG: log },
      example("openai")
    )
    const ready = () => autoscaler.to("/worker_status/").some(({ body }) => body.loadtime > 0)
    await eventually("loading", () => autoscaler.to("/worker_status/").length > 0)
    assert.isFalse(ready())
    await writeFile(log, "INFO: Application startup complete.\n")
    await eventually("ready", ready)

    const body = JSON.stringify(request({ messages: [{ role: "user", content: "hi" }], max_tokens: 40, stream: true }))
    const ask = (signal?: AbortSignal) =>
      fetch(`${worker.url}/v1/chat/completions`, { method: "POST", body, ...(signal && { signal }) })
    const response = await ask()
    assert.strictEqual(response.headers.get("content-type"), "text/event-stream")
    const reader = response.body?.getReader()
    assert.strictEqual(new TextDecoder().decode((await reader?.read())?.value), 'data: {"delta":"é"}\n\n')
    await eventually("load of 40", () => autoscaler.to("/worker_status/").at(-1)?.body.cur_load === 40)
    next()
    assert.strictEqual(new TextDecoder().decode((await reader?.read())?.value), "data: [DONE]\n\n")
    assert.isTrue((await reader?.read())?.done)

    const gone = new AbortController()
    const cut = await ask(gone.signal)
    await cut.body?.getReader().read()
    gone.abort()
    await eventually("call cancelled", () => hungUp === 1)
    const ends = () => autoscaler.to("/delete_requests/").flatMap((note) => note.body.requests)
    await eventually("both deleted", () => ends().length === 2)
    assert.deepStrictEqual(
      ends().map(({ status }) => status),
      ["Success", "Cancelled"]
    )
    model.closeAllConnections()
    model.close()
  })

  it("read a model's stream no faster than the client does", async () => {
    await using folder = await temporary()
    const log = join(folder.path, "model.log")
    await writeFile(log, "startup complete\n")
    const megabyte = Buffer.alloc(2 ** 20)
    const all = 200
    let written = 0
    const model = createServer((asked, response) => {
      const write = () => {
        while (written < all) {
          written += 1
          if (!response.write(megabyte)) return void response.once("drain", write)
        }
        response.end()
      }
      asked.resume().on("end", write)
    }).listen(0, "127.0.0.1")
    await once(model, "listening")
    await using autoscaler = await listen()
    const environment = { MODEL_URL: `http://127.0.0.1:${(model.address() as AddressInfo).port}`, MODEL_LOG: log }
    await using worker = await startReadyWorker(autoscaler, environment, example("openai"))
    const response = await fetch(`${worker.url}/v1/chat/completions`, {
      method: "POST",
      body: JSON.stringify(request({ messages: [] }))
    })
    // Nobody reads: what fits into the buffers on the way is written, and then no more.
    let before = -1
    await eventually("stalled", async () => {
      const stalled = before === written
      before = written
      await new Promise((resolve) => setTimeout(resolve, 200))
      return stalled
    })
    assert.isBelow(written, all / 2)
    const body = await response.arrayBuffer()
    assert.strictEqual(body.byteLength, all * 2 ** 20)
    model.closeAllConnections()
    model.close()
  })

  it("ask the consumer's health in their own way", async () => {
    await using folder = await temporary()
    const file = join(folder.path, "heartbeat")
    await writeFile(file, "")
    await using autoscaler = await listen()
    const queue = await listen()
    const environment = { HEARTBEAT_FILE: file, CONSUMER_PID: String(process.pid), QUEUE_PORT: new URL(queue.url).port }
    const errorOf = (worker: { readonly url: string }) =>
      eventually(
        "errored",
        () =>
          autoscaler.to("/worker_status/").find(({ body }) => body.url === worker.url && body.error_msg !== "")?.body.error_msg
      )
    await using worker = await startReadyWorker(autoscaler, environment, example("own-probe"))
    assert.strictEqual((await post(`${worker.url}/ping`, request({}))).status, 200)
    await utimes(file, 0, 0)
    assert.match(await errorOf(worker), /^no heartbeat for \d+ s$/)

    await utimes(file, new Date(), new Date())
    await using another = await startReadyWorker(autoscaler, environment, example("own-probe"))
    await queue[Symbol.asyncDispose]()
    assert.strictEqual(await errorOf(another), "the queue cannot be reached")
  })
})
