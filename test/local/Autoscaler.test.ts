import { createPublicKey, verify } from "node:crypto"
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import * as Autoscaler from "../../src/local/Autoscaler.ts"
import * as Fleet from "../../src/local/Fleet.ts"
import * as Scaling from "../../src/local/Scaling.ts"
import { signedMessage } from "../../src/protocol/AuthData.ts"
import type { DeletedRequest, WorkerStatus } from "../../src/protocol/Report.ts"
import type { EndpointParameters } from "../../src/protocol/RouteApi.ts"

const endpoint = { id: 1, name: "null", apiKey: "endpoint-key" }

/** What each worker proves itself with: the token that it was started with, or the one for who joins. */
const tokens = new Map<number, string>()
const tokenOf = (id: number) => tokens.get(id) ?? "token"

/** An autoscaler whose workers exist only as this list; the test speaks for them. */
const autoscaling = (parameters: Partial<EndpointParameters> = {}) => {
  const running = new Map<number, Deferred.Deferred<number>>()
  tokens.clear()
  const started: Array<number> = []
  const fleet = Layer.succeed(Fleet.Fleet, {
    start: ({ id, masterToken }) =>
      Effect.acquireRelease(
        Effect.gen(function* () {
          const exit = yield* Deferred.make<number>()
          running.set(id, exit)
          tokens.set(id, Redacted.value(masterToken))
          started.push(id)
          return Deferred.await(exit)
        }),
        // A process that is stopped exits, and whoever waits for that hears of it.
        () =>
          Effect.andThen(
            Effect.sync(() => running.get(id)),
            (gone) => {
              running.delete(id)
              return gone === undefined ? Effect.void : Deferred.succeed(gone, 0)
            }
          )
      )
  })
  const layer = Autoscaler.layer({
    endpoint,
    apiKey: "account-key",
    masterToken: Redacted.make("token"),
    parameters: { ...Scaling.defaults, ...parameters },
    reportAddress: "http://here"
  }).pipe(Layer.provide(fleet))
  return { layer, running, started }
}

const route = (request_idx = 0, api_key = endpoint.apiKey) =>
  Effect.flatMap(Autoscaler.Autoscaler, (autoscaler) =>
    autoscaler.route({ endpoint: endpoint.name, api_key, cost: 100, request_idx, replay_timeout: 60 })
  )

const report = (id: number, fields: Partial<WorkerStatus> = {}) =>
  Effect.flatMap(Autoscaler.Autoscaler, (autoscaler) =>
    autoscaler.status({
      id,
      mtoken: tokenOf(id),
      version: "1.1.0",
      loadtime: 1,
      new_load: 0,
      cur_load: 0,
      rej_load: 0,
      cur_perf: 0,
      max_perf: 100,
      error_msg: "",
      num_requests_working: 0,
      num_requests_recieved: 0,
      additional_disk_usage: 0,
      disk_usage: 0,
      working_request_idxs: [],
      cur_capacity: 0,
      max_capacity: 0,
      url: `http://worker-${id}`,
      ...fields
    })
  )

const working = (id: number, request_idx: number) => report(id, { cur_load: 100, working_request_idxs: [request_idx] })

const done = (id: number, request_idx: number, status: DeletedRequest["status"]) =>
  Effect.flatMap(Autoscaler.Autoscaler, (autoscaler) =>
    autoscaler.deleteRequests(id, tokenOf(id), [
      { request_idx, success: true, status, entered_queue_at: 0, work_started_at: 0, work_completed_at: 0 }
    ])
  )

const settle = TestClock.adjust("1 seconds")

describe("Autoscaler", () => {
  it.effect("queues a request, starts a worker, and routes there with a signature that verifies", () => {
    const { layer, started } = autoscaling()
    return Effect.gen(function* () {
      assert.deepStrictEqual(yield* route(), { request_idx: 1, status: "queued" })
      yield* settle
      assert.deepStrictEqual(started, [1])
      assert.notProperty(yield* route(1), "url")
      yield* report(1)
      const routed = yield* route(1)
      assert.deepInclude(routed, { url: "http://worker-1", request_idx: 1, cost: 100, endpoint: "null" })
      const { publicKey } = yield* Autoscaler.Autoscaler
      const signature = Buffer.from("signature" in routed ? String(routed.signature) : "", "base64")
      assert.isTrue(verify("RSA-SHA256", Buffer.from(signedMessage("http://worker-1")), createPublicKey(publicKey), signature))
    }).pipe(Effect.provide(layer))
  })

  it.effect("holds a routed worker for its client, then gives it to the next", () => {
    const { layer } = autoscaling({ max_workers: 1 })
    return Effect.gen(function* () {
      yield* route()
      yield* settle
      yield* report(1)
      assert.property(yield* route(1), "url")
      assert.notProperty(yield* route(), "url")
      yield* TestClock.adjust("4 seconds")
      assert.notProperty(yield* route(2), "url")
      yield* TestClock.adjust("4 seconds")
      assert.deepInclude(yield* route(2), { request_idx: 2, url: "http://worker-1" })
    }).pipe(Effect.provide(layer))
  })

  it.effect("does not route to a worker whose queue is longer than max_queue_time", () => {
    const { layer, started } = autoscaling()
    return Effect.gen(function* () {
      yield* route()
      yield* settle
      yield* report(1)
      yield* route(1)
      yield* working(1, 1)
      assert.notProperty(yield* route(), "url")
      yield* settle
      assert.deepStrictEqual(started, [1, 2])
      yield* report(2)
      assert.deepInclude(yield* route(2), { url: "http://worker-2" })
    }).pipe(Effect.provide(layer))
  })

  it.effect("puts a request that its worker rejected back into the queue, under its number", () => {
    const { layer } = autoscaling({ max_workers: 1 })
    return Effect.gen(function* () {
      yield* route()
      yield* settle
      yield* report(1)
      yield* route(1)
      yield* report(1, { cur_load: 100, working_request_idxs: [99] })
      yield* done(1, 1, "Rejected")
      assert.deepStrictEqual(yield* route(1), { request_idx: 1, status: "queued" })
      yield* report(1)
      assert.deepInclude(yield* route(1), { request_idx: 1, url: "http://worker-1" })
    }).pipe(Effect.provide(layer))
  })

  it.effect("stops a worker after inactivity_timeout without load, counted from its last load", () => {
    const { layer, running } = autoscaling({ inactivity_timeout: 10 })
    return Effect.gen(function* () {
      yield* route()
      yield* settle
      yield* report(1)
      yield* route(1)
      yield* working(1, 1)
      yield* TestClock.adjust("25 seconds")
      yield* report(1)
      yield* done(1, 1, "Success")
      yield* TestClock.adjust("9 seconds")
      assert.isTrue(running.has(1))
      yield* TestClock.adjust("2 seconds")
      assert.isFalse(running.has(1))
      const { history } = yield* Autoscaler.Autoscaler
      const { outcomes, workers, workersStarted } = yield* history
      assert.deepStrictEqual([workersStarted, workers.length, outcomes.get(1)], [1, 0, "Success"])
    }).pipe(Effect.provide(layer))
  })

  it.effect("keeps cold_workers stopped for the next start, and uses them first", () => {
    const { layer, started } = autoscaling({ cold_workers: 1, inactivity_timeout: 1 })
    return Effect.gen(function* () {
      const { workers } = yield* Autoscaler.Autoscaler
      assert.deepStrictEqual(
        (yield* workers).map(({ id, status }) => [id, status]),
        [[1, "stopped"]]
      )
      for (const idx of [1, 2]) {
        yield* route()
        yield* settle
        yield* report(1)
        yield* route(idx)
        yield* done(1, idx, "Success")
        yield* TestClock.adjust("3 seconds")
        assert.deepStrictEqual(
          (yield* workers).map(({ id, status }) => [id, status]),
          [[1, "stopped"]]
        )
      }
      assert.deepStrictEqual(started, [1, 1])
    }).pipe(Effect.provide(layer))
  })

  it.effect("keeps min_load's workers running", () => {
    const { layer, running } = autoscaling({ min_load: 200, inactivity_timeout: 1 })
    return Effect.gen(function* () {
      yield* settle
      yield* report(1)
      yield* report(2)
      yield* TestClock.adjust("20 seconds")
      assert.deepStrictEqual(Array.from(running.keys()), [1, 2])
    }).pipe(Effect.provide(layer))
  })

  it.effect.each<
    [string, (running: Map<number, Deferred.Deferred<number>>) => Effect.Effect<unknown, unknown, Autoscaler.Autoscaler>]
  >([
    ["reports an error", () => report(1, { error_msg: "broken" })],
    ["says nothing for 30 s", () => TestClock.adjust("31 seconds")],
    ["exits", (running) => Deferred.succeed(running.get(1) ?? Deferred.makeUnsafe<number>(), 1)]
  ])("replaces a worker that %s", ([, happens]) => {
    const { layer, running } = autoscaling({ min_load: 100 })
    return Effect.gen(function* () {
      yield* settle
      yield* report(1)
      yield* happens(running)
      // Second by second, so that each of the steps in between happens at its own time.
      yield* Effect.repeat(settle, { times: 3 })
      assert.deepStrictEqual(Array.from(running.keys()), [2])
    }).pipe(Effect.provide(layer))
  })

  it.effect("starts a worker at once after others were stopped because they were idle", () => {
    const { layer, started } = autoscaling({ inactivity_timeout: 1 })
    return Effect.gen(function* () {
      for (let idx = 1; idx <= 5; idx++) {
        yield* route()
        yield* settle
        assert.strictEqual(started.length, idx)
        yield* report(idx)
        yield* route(idx)
        yield* done(idx, idx, "Success")
        yield* Effect.repeat(settle, { times: 3 })
      }
    }).pipe(Effect.provide(layer))
  })

  it.effect("starts a worker that keeps failing with growing pauses", () => {
    const { layer, running, started } = autoscaling({ min_load: 100 })
    return Effect.gen(function* () {
      for (let second = 0; second < 60; second++) {
        yield* settle
        for (const [id, exit] of running) {
          yield* report(id, { loadtime: 0 })
          yield* Deferred.succeed(exit, 78)
        }
      }
      assert.isAtMost(started.length, 7)
      assert.isAtLeast(started.length, 5)
    }).pipe(Effect.provide(layer))
  })

  it.effect("lets a worker join that was started elsewhere, and does not stop it", () => {
    const { layer } = autoscaling({ inactivity_timeout: 1 })
    return Effect.gen(function* () {
      yield* report(77)
      for (let times = 0; times < 5; times++) {
        yield* TestClock.adjust("10 seconds")
        yield* report(77)
      }
      assert.deepInclude(yield* route(), { url: "http://worker-77" })
    }).pipe(Effect.provide(layer))
  })

  it.effect("answers nobody without the key or the token", () => {
    const { layer } = autoscaling()
    return Effect.gen(function* () {
      assert.strictEqual((yield* Effect.flip(route(0, "wrong")))._tag, "Forbidden")
      assert.strictEqual((yield* Effect.flip(report(1, { mtoken: "wrong" })))._tag, "Forbidden")
      yield* route()
      yield* settle
      assert.strictEqual((yield* Effect.flip(report(1, { mtoken: "token" })))._tag, "Forbidden")
    }).pipe(Effect.provide(layer))
  })

  it.effect("stops its workers when it ends", () => {
    const { layer, running } = autoscaling({ min_load: 300 })
    return Effect.gen(function* () {
      yield* settle.pipe(Effect.provide(layer))
      assert.strictEqual(running.size, 0)
    })
  })
})
