#!/usr/bin/env node
/**
 * The `null-pyworker` command.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Command from "effect/cli/Command"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import * as Runtime from "effect/Runtime"
import pkg from "../package.json" with { type: "json" }
import { logConfig } from "./config.ts"
import * as Main from "./main.ts"

const logging = Layer.unwrap(
  Effect.map(logConfig, ({ format, level }) =>
    Layer.merge(
      Logger.layer([format === "json" ? Logger.consoleJson : Logger.consoleLogFmt]),
      Layer.succeed(References.MinimumLogLevel, level)
    )
  )
)

const worker = Command.make("worker", {}, () => Main.run).pipe(
  Command.withDescription("Run the worker on this instance; the environment says how (see the README)")
)

const command = Command.make("null-pyworker").pipe(
  Command.withDescription("Reserve Vast.ai Serverless workers for your own job queue"),
  Command.withSubcommands([worker])
)

// Being told to stop is no failure.
const teardown: Runtime.Teardown = (exit, onExit) =>
  Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause) ? onExit(0) : Runtime.defaultTeardown(exit, onExit)

command.pipe(
  Command.run({ version: pkg.version }),
  Effect.provide(logging),
  Effect.tapErrorTag("ConfigRefused", ({ message }) => Console.error(message)),
  Effect.provide(NodeServices.layer),
  NodeRuntime.runMain({ disableErrorReporting: true, teardown })
)
