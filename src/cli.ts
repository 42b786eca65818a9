#!/usr/bin/env node
/**
 * The `null-pyworker` command. The worker, for whose start an instance waits and whose memory the user's job shares, is run
 * without so much as loading the rest.
 */
import * as Main from "./main.ts"
import * as Launch from "./worker/Launch.ts"

const [, , ...args] = process.argv
if (args.join() === "worker") Launch.runProcess(Main.run)
else Launch.runProcess((await import("./commands.ts")).run)
