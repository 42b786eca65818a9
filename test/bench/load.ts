/**
 * What the load generator is asked to do, and how. It is a process of its own, so that it has a core of its own.
 */
import { type ChildProcess, fork } from "node:child_process"
import { once } from "node:events"
import { fileURLToPath } from "node:url"

export interface Job {
  readonly port: number
  /** `auth_data` without the numbers of a request. */
  readonly auth: object
  /**
   * `cycle` creates a session and ends it, `open` creates it and leaves it; `ping` and `health` are about one open session a
   * connection, `probe` about none, so that nothing is changed by it.
   */
  readonly work: "cycle" | "open" | "ping" | "health" | "probe"
  readonly connections: number
  /** Until so many are done, or for so long. */
  readonly count?: number
  readonly seconds?: number
  /** Milliseconds from one request of a connection to its next, at least. */
  readonly pace?: number
}

export interface Done {
  readonly count: number
  readonly seconds: number
  /** Milliseconds that each request took, by route. */
  readonly latencies: Readonly<Record<string, Float64Array>>
  /** How much of a core the generator itself was busy: near 1, it is the generator that was measured. */
  readonly busy: number
}

export type Outcome = { readonly done: Done } | { readonly failed: string }

export const startLoad = () => {
  const child: ChildProcess = fork(fileURLToPath(new URL("generator.ts", import.meta.url)), { serialization: "advanced" })
  const ask = async (job: Job): Promise<Done> => {
    child.send(job)
    const [outcome] = (await once(child, "message")) as [Outcome]
    if ("failed" in outcome) throw new Error(`${job.work} on ${job.connections} connections: ${outcome.failed}`)
    return outcome.done
  }
  let last: Promise<unknown> = Promise.resolve()
  return {
    /** One job at a time, in the order in which they are asked for: two would have the core to share. */
    run: (job: Job): Promise<Done> => {
      const next = last.then(() => ask(job))
      last = next.catch(() => {})
      return next
    },
    stop: () => void child.disconnect()
  }
}

export type Load = ReturnType<typeof startLoad>
