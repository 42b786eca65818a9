/**
 * `null-pyworker local`: the whole of Vast Serverless on this machine, and a demonstration of it.
 */
import { createServer } from "node:http"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import type { FileSystem } from "effect/FileSystem"
import type * as HttpClient from "effect/http/HttpClient"
import * as HttpRouter from "effect/http/HttpRouter"
import type { ServeError } from "effect/http/HttpServerError"
import * as Layer from "effect/Layer"
import type { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Display } from "../client/Display.ts"
import type { RequestError } from "../client/Endpoint.ts"
import { staircase } from "../client/Plan.ts"
import * as Serverless from "../client/Serverless.ts"
import type { SessionError } from "../client/Session.ts"
import type { ConfigRefused } from "../config.ts"
import type { RequestStatus } from "../protocol/Report.ts"
import type { EndpointParameters } from "../protocol/RouteApi.ts"
import * as Autoscaler from "./Autoscaler.ts"
import * as ControlPlane from "./ControlPlane.ts"
import * as DevCertificates from "./DevCertificates.ts"
import * as Processes from "./Processes.ts"

/** What the local account is called by. None of these is a secret: the control plane is on loopback only. */
export const account = {
  apiKey: "local",
  masterToken: "local-master-token",
  endpoint: { id: 1, name: "null", apiKey: "local-endpoint" }
} as const

export interface Options {
  readonly port: number
  readonly tls: boolean
  readonly parameters: EndpointParameters
}

const layer = ({ parameters, port, tls }: Options) => {
  const settings: Autoscaler.Settings = {
    ...account,
    masterToken: Redacted.make(account.masterToken),
    parameters,
    reportAddress: address(port)
  }
  return stopWorkersFirst.pipe(
    Layer.provide(
      HttpRouter.serve(Layer.mergeAll(ControlPlane.routes(settings), ControlPlane.refusals, DevCertificates.routes), {
        disableLogger: true,
        disableListenLog: true
      })
    ),
    Layer.provide(NodeHttpServer.layer(createServer, { port, host: "127.0.0.1", gracefulShutdownTimeout: "1 second" })),
    Layer.provideMerge(Autoscaler.layer(settings)),
    Layer.provide(Processes.layer({ tls })),
    Layer.provide(DevCertificates.layer)
  )
}

// Built last and so torn down first, while the control plane still takes the workers' last reports.
const stopWorkersFirst = Layer.effectDiscard(
  Effect.flatMap(Autoscaler.Autoscaler, ({ shutdown }) => Effect.addFinalizer(() => shutdown))
)

const address = (port: number) => `http://127.0.0.1:${port}`

/** Runs the control plane until it is interrupted. */
export const run = (options: Options): Effect.Effect<never, ServeError, Display | ChildProcessSpawner | FileSystem> =>
  Effect.gen(function* () {
    const { say } = yield* Display
    yield* say(`control plane on ${address(options.port)}, endpoint "${account.endpoint.name}"`)
    yield* say(`try: VAST_API_KEY=${account.apiKey} null-pyworker client --endpoint ${account.endpoint.name} --instance local`)
    return yield* Effect.never
  }).pipe(Effect.provide(layer(options)))

/** The demonstration did not go as it must. */
export class DemoFailed extends Schema.TaggedError<DemoFailed>()("DemoFailed", { message: Schema.String }) {}

/** Runs the control plane and, against it, three staggered sessions; then waits for the workers to go, and sums up. */
export const demo = (
  options: Options,
  plan: { readonly interval: number; readonly plateau: number }
): Effect.Effect<
  void,
  ServeError | ConfigRefused | Serverless.EndpointNotFound | RequestError | SessionError | DemoFailed,
  Display | ChildProcessSpawner | FileSystem | HttpClient.HttpClient
> =>
  Effect.gen(function* () {
    const { say } = yield* Display
    const autoscaler = yield* Autoscaler.Autoscaler
    const endpoint = yield* (yield* Serverless.Serverless).getEndpoint(account.endpoint.name)
    yield* staircase(endpoint, plan)

    yield* say(`waiting for the workers to go, ${options.parameters.inactivity_timeout} s after their last session`)
    const history = yield* autoscaler.history.pipe(
      Effect.repeat({ schedule: Schedule.spaced("200 millis"), until: ({ workers }) => workers.length === 0 }),
      Effect.timeoutOrElse({
        duration: `${options.parameters.inactivity_timeout + 15} seconds`,
        orElse: () => autoscaler.history
      })
    )
    const outcomes = Array.from(history.outcomes.values())
    const count = (status: RequestStatus) => outcomes.filter((outcome) => outcome === status).length
    yield* say("")
    yield* say(`workers started  ${history.workersStarted}`)
    yield* say(`sessions closed  ${count("Success")} Success, ${count("Cancelled")} Cancelled, ${count("Error")} Error`)
    yield* say(`workers left     ${history.workers.length}`)
    const asPromised =
      history.workersStarted === 3 && count("Success") === 3 && outcomes.length === 3 && history.workers.length === 0
    if (!asPromised)
      return yield* new DemoFailed({ message: "expected 3 workers started, 3 sessions closed as Success, 0 workers left" })
  }).pipe(
    Effect.provide(
      Serverless.layer(
        { web: address(options.port), autoscaler: address(options.port) },
        { apiKey: Redacted.make(account.apiKey) }
      )
    ),
    Effect.provide(layer(options))
  )
