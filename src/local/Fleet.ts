/**
 * Where the autoscaler's workers come from.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { PlatformError } from "effect/PlatformError"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"

/** A worker to be started. */
export interface Assignment {
  readonly id: number
  readonly masterToken: Redacted.Redacted
  readonly reportAddress: string
}

export class Fleet extends Context.Service<
  Fleet,
  {
    /** Starts a worker, and answers with the effect that waits for its exit code. Closing the scope stops it. */
    readonly start: (assignment: Assignment) => Effect.Effect<Effect.Effect<number>, PlatformError, Scope.Scope>
  }
>()("null-pyworker/local/Fleet") {}
