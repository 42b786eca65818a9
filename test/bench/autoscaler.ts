/**
 * The rest of Vast for one worker: takes its reports, has a key to sign with, and is the consumer whose health it asks after.
 */
import { generateKeyPairSync, sign } from "node:crypto"
import { once } from "node:events"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { signedMessage } from "../../src/protocol/AuthData.ts"

export interface Report {
  /** When all of it had come, on the clock of `performance.now`. */
  readonly at: number
  readonly path: string
  readonly bytes: number
  // biome-ignore lint/suspicious/noExplicitAny: a report off the wire, read field by field
  readonly body: any
}

const keys = generateKeyPairSync("rsa", { modulusLength: 2048 })
const publicKey = keys.publicKey.export({ type: "spki", format: "pem" })

export const signatureOf = (url: string) =>
  sign("RSA-SHA256", Buffer.from(signedMessage(url)), keys.privateKey).toString("base64")

export const startAutoscaler = async () => {
  const listeners = new Set<(report: Report) => void>()
  const server = createServer({ keepAliveTimeout: 75000 }, async (request, response) => {
    const path = request.url ?? ""
    // Reports that nobody listens to are not even kept, because under load they come by the thousands on a core that others need.
    const chunks: Array<Buffer> = []
    for await (const chunk of request) if (listeners.size > 0) chunks.push(chunk)
    const at = performance.now()
    response.end(path === "/pubkey/" ? publicKey : "{}")
    if (request.method !== "POST" || chunks.length === 0) return
    const text = Buffer.concat(chunks)
    const report = { at, path, bytes: text.length, body: JSON.parse(text.toString()) }
    for (const listener of [...listeners]) listener(report)
  })
  server.listen(0, "127.0.0.1")
  await once(server, "listening")

  /** Hears every report from now on, until the function that it gives is called. */
  const hear = (listener: (report: Report) => void) => {
    listeners.add(listener)
    return () => void listeners.delete(listener)
  }
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    hear,
    /** The next report on this route for which something holds. */
    next: (path: string, holds: (report: Report) => boolean, seconds = 30) =>
      new Promise<Report>((resolve, reject) => {
        const settle = (then: () => void) => {
          clearTimeout(late)
          deafen()
          then()
        }
        const late = setTimeout(
          () => settle(() => reject(new Error(`no such report on ${path} within ${seconds} s`))),
          seconds * 1000
        )
        const deafen = hear((report) => report.path === path && holds(report) && settle(() => resolve(report)))
      }),
    close: () => {
      server.closeAllConnections()
      server.close()
    }
  }
}

export type Autoscaler = Awaited<ReturnType<typeof startAutoscaler>>
