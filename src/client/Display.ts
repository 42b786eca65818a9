/**
 * Where a command says what happens, and what it waits for meanwhile.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"

export class Display extends Context.Service<
  Display,
  {
    readonly say: (line: string) => Effect.Effect<void>
    /** What `who` waits for; empty when it waits no more. */
    readonly waiting: (who: string, state: string) => Effect.Effect<void>
  }
>()("null-pyworker/client/Display") {}

const eraseLine = "\r\u001b[K"

/** On a terminal the waiting is one live line below what is said and logged; elsewhere each change is a line of its own. */
export const layer = (options: {
  readonly write: (text: string) => void
  readonly live: boolean
  readonly logFormat: Logger.Logger<unknown, string>
}): Layer.Layer<Display> => {
  const { live, logFormat, write } = options
  const states = new Map<string, string>()
  const statusLine = () => Array.from(states, ([who, state]) => `${who} ${state}`).join(" | ")
  const print = (line: string) => write(live ? `${eraseLine}${line}\n${statusLine()}` : `${line}\n`)
  return Layer.merge(
    Layer.succeed(Display, {
      say: (line) => Effect.sync(() => print(line)),
      waiting: (who, state) =>
        Effect.sync(() => {
          if (state === "") states.delete(who)
          else states.set(who, state)
          if (live) write(`${eraseLine}${statusLine()}`)
          else if (state !== "") print(`${who} ${state}`)
        })
    }),
    Logger.layer([Logger.map(logFormat, print)])
  )
}
