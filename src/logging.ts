/**
 * How the log is written: one line an event, to read or as JSON.
 */
import * as Effect from "effect/Effect"
import { CurrentRedactedNames } from "effect/http/UrlParams"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { type ConfigRefused, logConfig } from "./config.ts"

/** The form of a line that `LOG_FORMAT` asks for. */
export const format: Effect.Effect<Logger.Logger<unknown, string>, ConfigRefused> = Effect.map(logConfig, ({ format }) =>
  format === "json" ? Logger.formatJson : Logger.formatLogFmt
)

/**
 * Logs to the console in the form of `LOG_FORMAT`, from the level of `LOG_LEVEL` up. Errors of requests show no query of their
 * URL, whose parameters are often secrets.
 */
export const layer: Layer.Layer<never, ConfigRefused> = Layer.unwrap(
  Effect.gen(function* () {
    const { level } = yield* logConfig
    return Layer.mergeAll(
      Logger.layer([Logger.withConsoleLog(yield* format)]),
      Layer.succeed(References.MinimumLogLevel, level),
      Layer.succeed(CurrentRedactedNames, [/./])
    )
  })
)
