/* The server's side of the page. A failure is an Error with the server's sentence. */

export async function get(path) {
  return answer(await fetch(path));
}

export async function post(path, body, signal) {
  return answer(await request(path, body, signal));
}

/* Server-sent events as they come, each as its object. */
export async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  if (!response.ok) await answer(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const event = JSON.parse(part.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const request = (path, body, signal) => fetch(path, {
  method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal,
});

async function answer(response) {
  const found = await response.json();
  if (!response.ok) throw new Error(found.error.message);
  return found;
}
