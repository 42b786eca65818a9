/**
 * The `null-pyworker` command's subcommands, and its help.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import pkg from "../package.json" with { type: "json" }
import * as Scaling from "./local/Scaling.ts"
import * as Logging from "./logging.ts"
import * as Main from "./main.ts"
import { HttpUrl } from "./protocol/SessionApi.ts"

const worker = Command.make("worker", {}, () => Main.run).pipe(
  Command.withDescription("Run the worker on this instance; the environment says how")
)

const count = (name: string, fallback: number, description: string) =>
  Flag.Int(name).pipe(
    Flag.withSchema(Schema.Int.check(Schema.isGreaterThanOrEqualTo(0))),
    Flag.withDefault(fallback),
    Flag.withDescription(`${description} (${fallback})`)
  )
const number = (name: string, fallback: number, description: string) =>
  Flag.Finite(name).pipe(
    Flag.withSchema(Schema.Finite.check(Schema.isGreaterThanOrEqualTo(0))),
    Flag.withDefault(fallback),
    Flag.withDescription(`${description} (${fallback})`)
  )
const url = (name: string, description: string) =>
  Flag.String(name).pipe(Flag.withSchema(HttpUrl), Flag.withDescription(description), Flag.optional)

// The client and the control plane are loaded when they are asked for: a worker starts without them.
const display = Layer.unwrap(
  Effect.gen(function* () {
    const { layer } = yield* Effect.promise(() => import("./client/Display.ts"))
    return layer({
      write: (text) => process.stdout.write(text),
      live: process.stdout.isTTY === true,
      logFormat: yield* Logging.format
    }).pipe(Layer.provideMerge(Logging.layer))
  })
)

const client = Command.make(
  "client",
  {
    endpoint: Flag.String("endpoint").pipe(Flag.withDescription("Name of the endpoint whose workers to reserve")),
    instance: Flag.Literals("instance", ["prod", "alpha", "candidate", "local"]).pipe(
      Flag.withDefault("prod"),
      Flag.withDescription("Instance of the platform (prod)")
    ),
    autoscaler: url("autoscaler", "URL of the autoscaler, instead of the instance's"),
    web: url("web", "URL of the web API, instead of the instance's"),
    hold: number("hold", 180, "Seconds to hold the reservation"),
    demo: Flag.Boolean("demo").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Hold three reservations that start and end one after the other")
    ),
    interval: number("interval", 30, "Seconds between two starts, and between two ends, of --demo"),
    plateau: number("plateau", 300, "Seconds that --demo holds all three")
  },
  Effect.fn(function* (flags) {
    const { hold, staircase } = yield* Effect.promise(() => import("./client/Plan.ts"))
    const Serverless = yield* Effect.promise(() => import("./client/Serverless.ts"))
    const platform = Serverless.platforms[flags.instance]
    yield* Effect.gen(function* () {
      const endpoint = yield* (yield* Serverless.Serverless).getEndpoint(flags.endpoint)
      yield* flags.demo ? staircase(endpoint, flags) : hold(endpoint, { seconds: flags.hold })
    }).pipe(
      Effect.provide(
        Serverless.layer({
          web: Option.getOrElse(flags.web, () => platform.web),
          autoscaler: Option.getOrElse(flags.autoscaler, () => platform.autoscaler)
        })
      ),
      Effect.provide([display, NodeHttpClient.layerNodeHttp])
    )
  })
).pipe(Command.withDescription("Reserve workers of an endpoint, with the key in VAST_API_KEY; Ctrl-C ends what is open"))

const local = Command.make(
  "local",
  {
    port: Flag.Int("port").pipe(Flag.withDefault(8080), Flag.withDescription("Loopback port of the control plane (8080)")),
    tls: Flag.Boolean("tls").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Workers speak TLS, with certificates of a development authority")
    ),
    demo: Flag.Boolean("demo").pipe(
      Flag.withDefault(false),
      Flag.withDescription("Show three staggered sessions, sum up, and end")
    ),
    maxWorkers: count("max-workers", Scaling.defaults.max_workers, "Workers at most, cold ones included"),
    minLoad: number("min-load", Scaling.defaults.min_load, "Load to keep workers for, whether it is there or not"),
    targetUtil: Flag.Finite("target-util").pipe(
      Flag.withSchema(Schema.Finite.check(Schema.isGreaterThan(0))),
      Flag.withDefault(Scaling.defaults.target_util),
      Flag.withDescription(`Share of the workers' capacity to plan with (${Scaling.defaults.target_util})`)
    ),
    maxQueueTime: number(
      "max-queue-time",
      Scaling.defaults.max_queue_time,
      "Seconds of queue above which a worker gets no request"
    ),
    targetQueueTime: number(
      "target-queue-time",
      Scaling.defaults.target_queue_time,
      "Seconds in which queued requests should be served"
    ),
    inactivityTimeout: number(
      "inactivity-timeout",
      Scaling.defaults.inactivity_timeout,
      "Seconds without load after which a worker may go"
    ),
    coldWorkers: count("cold-workers", Scaling.defaults.cold_workers, "Workers to keep, stopped, for the next start")
  },
  Effect.fn(function* (flags) {
    const Local = yield* Effect.promise(() => import("./local/Local.ts"))
    const options = {
      port: flags.port,
      tls: flags.tls,
      parameters: {
        max_workers: flags.maxWorkers,
        min_load: flags.minLoad,
        target_util: flags.targetUtil,
        max_queue_time: flags.maxQueueTime,
        target_queue_time: flags.targetQueueTime,
        inactivity_timeout: flags.inactivityTimeout,
        cold_workers: flags.coldWorkers
      }
    }
    yield* (flags.demo ? Local.demo(options, { interval: 2, plateau: 3 }) : Local.run(options)).pipe(
      Effect.provide([display, NodeHttpClient.layerNodeHttp])
    )
  })
).pipe(Command.withDescription("Run Vast Serverless on this machine: autoscaler, web API, and workers as processes"))

const command = Command.make("null-pyworker").pipe(
  Command.withDescription("Reserve Vast.ai Serverless workers for your own job queue"),
  Command.withSubcommands([worker, client, local])
)

/** Does what the process' arguments say. */
export const run = command.pipe(
  Command.run({ version: pkg.version }),
  // The command parser has told its own failures already.
  Effect.mapError((error) => (error._tag === "ShowHelp" ? Object.assign(error, { message: "" }) : error)),
  Effect.provide(NodeServices.layer)
)
