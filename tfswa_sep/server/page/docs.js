// Shows openapi.json: what each address takes and answers.

const element = (tag, text = "", ...children) => {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
};

// A schema in a few words: "string", "list of JobView".
function kind(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.format === "binary" ? "file" : (schema.type ?? "anything");
}

function table(rows) {
  return element("table", "", ...rows.map((cells) => element("tr", "", ...cells.map((text) => element("td", text)))));
}

const { paths, components } = await (await fetch("/openapi.json")).json();
document.getElementById("example").textContent = [
  `curl --form file=@song.mp3 ${location.origin}/v1/jobs`,
  `curl ${location.origin}/v1/jobs/ID`,
  `curl --remote-name --remote-header-name "${location.origin}/v1/jobs/ID/stems.zip?format=flac"`,
].join("\n");

const operations = document.getElementById("operations");
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, { description, summary, parameters = [], requestBody, responses }] of Object.entries(methods)) {
    operations.append(element("h3", `${method.toUpperCase()} ${path}`), element("p", description ?? summary));
    const rows = parameters.map(({ name, schema, description: text }) => [name, kind(schema), text ?? ""]);
    for (const [type, { schema }] of Object.entries(requestBody?.content ?? {}))
      for (const [name, property] of Object.entries(schema.properties ?? {}))
        rows.push([name, kind(property), property.description ?? "", type]);
    if (rows.length) operations.append(table(rows));
    const [status, answer] = Object.entries(responses)[0];
    const [type, content] = Object.entries(answer.content ?? {})[0] ?? ["nothing"];
    const returned = type === "application/json" ? kind(content.schema) : type;
    operations.append(element("p", `Answers ${status}: ${returned}`));
  }
}
for (const [name, schema] of Object.entries(components.schemas)) {
  if (!schema.properties || name.includes("Validation")) continue;
  operations.append(element("h3", name), element("p", schema.description ?? ""));
  operations.append(table(Object.entries(schema.properties).map(([key, property]) => [key, kind(property)])));
}
