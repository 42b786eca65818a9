/**
 * Vast Serverless in memory, for tests of your own worker: a control plane that signs, routes and scales, workers that it starts
 * and stops, and a client, all in the test's process and on the test's clock, without a port.
 *
 * @module null-pyworker/testing
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientError from "effect/http/HttpClientError"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as TestClock from "effect/testing/TestClock"
import type { Endpoint } from "./client/Endpoint.ts"
import * as Serverless from "./client/Serverless.ts"
import { WorkerConfig } from "./config.ts"
import * as Autoscaler from "./local/Autoscaler.ts"
import * as ControlPlane from "./local/ControlPlane.ts"
import * as Fleet from "./local/Fleet.ts"
import * as Scaling from "./local/Scaling.ts"
import type { EndpointParameters, WorkerInfo } from "./protocol/RouteApi.ts"
import { Outbound } from "./session/OnClose.ts"
import type { Handler } from "./worker/Handler.ts"
import * as HealthProbe from "./worker/HealthProbe.ts"
import * as Listener from "./worker/Listener.ts"
import * as Worker from "./worker/Worker.ts"

export { layerTest as layerRecordedReports, RecordedReports } from "./metrics/MetricsReporter.ts"
export { layerTest as layerScriptedHealth, ScriptedHealth } from "./worker/HealthProbe.ts"

/** Vast Serverless, as a test sees it. */
export class Platform extends Context.Service<
  Platform,
  {
    /** A client's endpoint, whose workers are the ones under test. */
    readonly endpoint: Endpoint
    /** The workers that run now, as the autoscaler sees them. */
    readonly workers: Effect.Effect<ReadonlyArray<WorkerInfo>>
    /** How many workers were started, and how each request ended, by its `request_idx`. */
    readonly history: Effect.Effect<Autoscaler.History>
  }
>()("null-pyworker/testing/Platform") {}

type Answer = (request: Request) => Promise<Response>

/** What is listened to, by port, and a client that reaches nothing else. */
class Network extends Context.Service<Network, Map<number, Answer>>()("null-pyworker/testing/Network") {}

const layerListener = Layer.effect(
  Listener.Listener,
  Effect.map(Network, (network) => ({
    listen: Effect.fnUntraced(function* (app, { port }) {
      const context = yield* Effect.context<never>()
      // An app needs nothing but the request, which the handler adds, and its scope.
      yield* Effect.acquireRelease(
        Effect.sync(() => network.set(port, HttpEffect.toWebHandlerWith(context)(app as Effect.Effect<never>))),
        () => Effect.sync(() => network.delete(port))
      )
    })
  }))
)

const layerClient = Layer.effect(
  HttpClient.HttpClient,
  Effect.map(Network, (network) =>
    HttpClient.make((request, url, signal) =>
      Effect.gen(function* () {
        const answer = network.get(Number(url.port))
        const description = "connection refused"
        const asked = yield* Effect.orDie(HttpClientRequest.toWeb(request, { signal }))
        const response =
          answer === undefined
            ? yield* new HttpClientError.HttpClientError({
                reason: new HttpClientError.TransportError({ request, description })
              })
            : yield* Effect.promise(() => answer(asked))
        return HttpClientResponse.fromWeb(request, response)
      })
    )
  )
)

const controlPlanePort = 8080
const controlPlane = `http://127.0.0.1:${controlPlanePort}`
const settings = {
  endpoint: { id: 1, name: "test", apiKey: "endpoint-key" },
  apiKey: "account-key",
  masterToken: Redacted.make("master-token"),
  reportAddress: controlPlane
}

/**
 * A platform whose workers have these handlers. Their consumer is as healthy as the test says, by `HealthProbe.ScriptedHealth`;
 * `parameters` are the endpoint's, where they are not those of one session = one worker. Time is the test's: `TestClock.adjust`.
 */
export const layer = <R = never>(options: {
  readonly handlers: ReadonlyArray<Handler<R>>
  readonly parameters?: Partial<EndpointParameters>
}): Layer.Layer<Platform | HealthProbe.ScriptedHealth, never, R> => {
  const fleet = Layer.effect(
    Fleet.Fleet,
    Effect.gen(function* () {
      const surroundings = yield* Effect.context<
        R | HttpClient.HttpClient | Outbound | Listener.Listener | NodeServices.NodeServices
      >()
      const consumer = yield* HealthProbe.HealthProbe
      const worker = Worker.layer({ handlers: options.handlers }).pipe(
        Layer.provide(Layer.succeed(HealthProbe.HealthProbe, consumer)),
        Layer.provide(Worker.layerServices)
      )
      return {
        start: Effect.fnUntraced(function* ({ id, masterToken, reportAddress }: Fleet.Assignment) {
          const port = 10_000 + 10 * id
          const config = WorkerConfig.of({
            id,
            masterToken,
            reportAddresses: [reportAddress],
            url: `http://127.0.0.1:${port}`,
            port,
            httpPort: port + 1,
            controlPort: port + 2,
            tls: Option.none(),
            signaturePolicy: "require",
            healthUrl: Option.none(),
            maxSessions: 1,
            maxBodyBytes: 2 ** 20,
            onCloseAllowPrivate: false,
            journalDirectory: Option.none()
          })
          yield* Layer.build(
            Layer.fresh(worker).pipe(
              Layer.provide(Layer.succeed(WorkerConfig, config)),
              Layer.provide(Layer.succeedContext(surroundings))
            )
          ).pipe(Effect.orDie)
          return Deferred.await(yield* Deferred.make<number>())
        })
      }
    })
  )

  const platform = Layer.effect(
    Platform,
    Effect.gen(function* () {
      const { history, shutdown, workers } = yield* Autoscaler.Autoscaler
      // First of all, while the control plane still takes the workers' last reports; what they wait for at most is 8 s.
      yield* Effect.addFinalizer(() =>
        Effect.gen(function* () {
          const stopping = yield* Effect.forkChild(shutdown)
          yield* TestClock.adjust("8 seconds")
          yield* Fiber.join(stopping)
        })
      )
      const { getEndpoint } = yield* Serverless.Serverless
      return { endpoint: yield* Effect.orDie(getEndpoint(settings.endpoint.name)), history, workers }
    })
  )

  const full = { ...settings, parameters: { ...Scaling.defaults, ...options.parameters } }
  const routes = Layer.merge(ControlPlane.routes(full), ControlPlane.refusals)
  const listening = Layer.effectDiscard(
    Effect.gen(function* () {
      const { listen } = yield* Listener.Listener
      // The refusals answer every error that the routes' type still names.
      const app = (yield* HttpRouter.toHttpEffect(routes)) as Listener.App
      yield* Effect.orDie(listen(app, { port: controlPlanePort }, []))
    })
  )

  return platform.pipe(
    Layer.provide(Serverless.layer({ web: controlPlane, autoscaler: controlPlane }, { apiKey: Redacted.make(settings.apiKey) })),
    Layer.provide(listening),
    Layer.provide(Autoscaler.layer(full)),
    Layer.provide(fleet),
    Layer.provideMerge(HealthProbe.layerTest),
    Layer.provide(Layer.effect(Outbound, HttpClient.HttpClient)),
    Layer.provide([layerClient, layerListener, NodeServices.layer]),
    Layer.provide(Layer.succeed(Network, new Map())),
    Layer.orDie
  )
}
