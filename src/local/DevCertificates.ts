/**
 * A certificate authority for development: made anew at every start, it signs workers' certificates as the console does on an
 * instance (wire sections 9 and 10). It vouches for loopback and nothing else.
 */
import "reflect-metadata"
import { webcrypto } from "node:crypto"
import * as x509 from "@peculiar/x509"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import { CertificateRequestRefused } from "./ControlPlane.ts"

export class DevCertificates extends Context.Service<
  DevCertificates,
  {
    /** The root that clients must trust, in PEM. */
    readonly root: string
    /** Signs a PKCS#10 request in PEM, for loopback, and answers with the certificate in PEM. */
    readonly sign: (request: string) => Effect.Effect<string, CertificateRequestRefused>
    /** A key and certificate of a worker's own, in PEM. */
    readonly issue: Effect.Effect<{ readonly certificate: string; readonly key: string }>
  }
>()("null-pyworker/local/DevCertificates") {}

const rsa = {
  name: "RSASSA-PKCS1-v1_5",
  hash: "SHA-256",
  publicExponent: new Uint8Array([1, 0, 1]),
  modulusLength: 2048
}
const validDays = 30

const inDays = (days: number) => new Date(Date.now() + days * 86_400_000)
const generateKeys = Effect.promise(() => webcrypto.subtle.generateKey(rsa, true, ["sign", "verify"]))

const make = Effect.gen(function* () {
  x509.cryptoProvider.set(webcrypto)
  const keys = yield* generateKeys
  const root = yield* Effect.promise(() =>
    x509.X509CertificateGenerator.createSelfSigned({
      name: "CN=null-pyworker development root",
      keys,
      notAfter: inDays(validDays),
      signingAlgorithm: rsa,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true)
      ]
    })
  )

  const certify = (publicKey: x509.PublicKeyType) =>
    Effect.promise(async () => {
      const certificate = await x509.X509CertificateGenerator.create({
        subject: "CN=pyworker.vast.ai",
        issuer: root.subject,
        publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: rsa,
        notAfter: inDays(validDays),
        extensions: [
          new x509.BasicConstraintsExtension(false),
          new x509.SubjectAlternativeNameExtension([
            { type: "ip", value: "127.0.0.1" },
            { type: "dns", value: "localhost" }
          ])
        ]
      })
      return certificate.toString("pem")
    })

  return DevCertificates.of({
    root: root.toString("pem"),
    sign: Effect.fnUntraced(function* (pem) {
      const request = yield* Effect.try({
        try: () => new x509.Pkcs10CertificateRequest(pem),
        catch: (cause) => new CertificateRequestRefused({ reason: `no certificate request: ${cause}` })
      })
      if (!(yield* Effect.promise(() => request.verify()))) {
        return yield* new CertificateRequestRefused({ reason: "the request is not signed by its own key" })
      }
      return yield* certify(request.publicKey)
    }),
    issue: Effect.gen(function* () {
      const own = yield* generateKeys
      const key = Buffer.from(yield* Effect.promise(() => webcrypto.subtle.exportKey("pkcs8", own.privateKey)))
      return { certificate: yield* certify(own.publicKey), key: x509.PemConverter.encode(key, "PRIVATE KEY") }
    })
  })
})

/** An authority that lives as long as this process. */
export const layer: Layer.Layer<DevCertificates> = Layer.effect(DevCertificates, make)

/** The console's part in certificates: the root, and the signing of requests. */
export const routes = HttpRouter.use(
  Effect.fnUntraced(function* (router) {
    const { root, sign } = yield* DevCertificates
    yield* router.add("GET", "/static/jvastai_root.cer", HttpServerResponse.text(root))
    yield* router.add(
      "POST",
      "/api/v0/sign_cert/",
      Effect.gen(function* () {
        const request = yield* HttpServerRequest.HttpServerRequest
        return HttpServerResponse.text(yield* sign(yield* request.text))
      })
    )
  })
)
