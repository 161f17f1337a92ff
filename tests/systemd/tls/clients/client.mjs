// Node's `https.Agent`: `client.mjs PORT AUTHORITY`. The protocol is in ../program.rs.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import https from "node:https";
import readline from "node:readline";

const [port, authority] = process.argv.slice(2);
const agent = new https.Agent({ keepAlive: true, maxSockets: 1, ca: readFileSync(authority) });
let kept;
for await (const path of readline.createInterface({ input: process.stdin })) {
    const request = https.get({ host: "localhost", port, path, agent });
    const [answer] = await once(request, "response");
    kept ??= answer.socket;
    if (answer.socket !== kept) throw new Error("the agent has opened another connection");
    const line = `${answer.statusCode} ${kept.localPort} ${kept.getProtocol()}`;
    answer.resume();
    await once(answer, "end");
    console.log(line);
}
