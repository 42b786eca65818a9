/**
 * Asks whether the user's own process on the instance can take work.
 *
 * The first healthy answer is part of becoming ready. Once the worker is ready, an unhealthy answer marks it errored, and the
 * autoscaler replaces it (wire section 7).
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as HttpClient from "effect/http/HttpClient"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { WorkerConfig } from "../config.ts"

/** The consumer is not healthy, for this reason. */
export class HealthCheckFailed extends Schema.TaggedError<HealthCheckFailed>()("HealthCheckFailed", {
  reason: Schema.String
}) {}

export class HealthProbe extends Context.Service<
  HealthProbe,
  {
    /** Succeeds when the consumer is healthy now. */
    readonly check: Effect.Effect<void, HealthCheckFailed>
  }
>()("null-pyworker/HealthProbe") {}

/** Nothing to ask: the worker itself is all there is, and it is healthy while it runs. */
export const layerStub: Layer.Layer<HealthProbe> = Layer.succeed(HealthProbe, { check: Effect.void })

const timeout = Duration.seconds(10)

/** Asks a URL of the consumer: 200 within 10 s is healthy, all else is not. Redirects are not followed. */
export const layerUrl = (url: string): Layer.Layer<HealthProbe, never, HttpClient.HttpClient> =>
  Layer.effect(
    HealthProbe,
    Effect.map(HttpClient.HttpClient, (client) => ({
      check: client.get(url).pipe(
        Effect.tap((response) => response.arrayBuffer),
        Effect.timeout(timeout),
        Effect.mapError((error) => new HealthCheckFailed({ reason: `Healthcheck failed: ${error.message}` })),
        Effect.flatMap(({ status }) =>
          status === 200 ? Effect.void : new HealthCheckFailed({ reason: `Healthcheck failed with status: ${status}` })
        )
      )
    }))
  )

/** Asks `BACKEND_HEALTH_URL` where it is set, and nothing where it is not. */
export const layer: Layer.Layer<HealthProbe, never, HttpClient.HttpClient | WorkerConfig> = Layer.unwrap(
  Effect.map(WorkerConfig, ({ healthUrl }) => (Option.isSome(healthUrl) ? layerUrl(healthUrl.value) : layerStub))
)

/** Lets a test say how the consumer is. */
export class ScriptedHealth extends Context.Service<
  ScriptedHealth,
  {
    /** From now on the consumer is healthy. */
    readonly healthy: Effect.Effect<void>
    /** From now on the consumer is unhealthy, for this reason. */
    readonly unhealthy: (reason: string) => Effect.Effect<void>
  }
>()("null-pyworker/HealthProbe/ScriptedHealth") {}

/** A consumer that is unhealthy ("not started") until the test says otherwise. */
export const layerTest: Layer.Layer<HealthProbe | ScriptedHealth> = Layer.effectContext(
  Effect.sync(() => {
    let answer: Effect.Effect<void, HealthCheckFailed> = new HealthCheckFailed({ reason: "not started" })
    const say = (next: typeof answer) =>
      Effect.sync(() => {
        answer = next
      })
    return Context.make(HealthProbe, { check: Effect.suspend(() => answer) }).pipe(
      Context.add(ScriptedHealth, {
        healthy: say(Effect.void),
        unhealthy: (reason) => say(new HealthCheckFailed({ reason }))
      })
    )
  })
)
