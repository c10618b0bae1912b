// Any service of the chain in Node: with Express if it is installed, else with Node's own server.
const { NAME, UPSTREAM, PORT } = process.env;

async function answer(request, response) {
  response.end(UPSTREAM ? `${NAME} => ${await (await fetch(UPSTREAM)).text()}` : `${NAME}\n`);
}

function server() {
  try {
    return require("express")().all("/", answer);
  } catch {
    return require("node:http").createServer(answer);
  }
}

server().listen(Number(PORT), "127.0.0.1");
