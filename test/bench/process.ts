/**
 * What the kernel knows of a process.
 */
import { execFileSync } from "node:child_process"
import * as Fs from "node:fs"

const mebibyte = 1024

/** Resident and proportional set size, in MiB. */
export const memory = (pid: number) => {
  const rollup = Fs.readFileSync(`/proc/${pid}/smaps_rollup`, "utf8")
  const field = (name: string) => Number(new RegExp(`^${name}: +(\\d+) kB`, "m").exec(rollup)?.[1]) / mebibyte
  return { rss: field("Rss"), pss: field("Pss") }
}

const ticksPerSecond = 100

/** Seconds of processor time that it has had. Where the kernel counts it by the nanosecond, so do we: an idle worker has few ticks. */
export const cpuSeconds = (pid: number) => {
  const threads = Fs.readdirSync(`/proc/${pid}/task`).map((thread) => `/proc/${pid}/task/${thread}/schedstat`)
  if (Fs.existsSync(`/proc/${pid}/schedstat`)) {
    return threads.reduce((sum, path) => sum + Number(Fs.readFileSync(path, "utf8").split(" ")[0]) / 1e9, 0)
  }
  const [utime, stime] = Fs.readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /s, "")
    .split(" ")
    .slice(11, 13)
  return (Number(utime) + Number(stime)) / ticksPerSecond
}

/** Has every program read from the disk anew. Says why, if that is not permitted. */
export const dropPageCache = (): string | undefined => {
  try {
    execFileSync("sync") // what is not on the disk yet would stay
    Fs.writeFileSync("/proc/sys/vm/drop_caches", "3")
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}
