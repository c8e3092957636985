// Renders /openapi.json and sends requests from the page. Text goes in as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);

function element(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

function resolve(spec, schema) {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? spec.components.schemas[name] : schema || {};
}

function typeOf(spec, schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map((part) => typeOf(spec, part)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `array of ${typeOf(spec, schema.items)}`;
  return schema.type || "";
}

// Words between backticks are code, as in Markdown.
function described(text) {
  const parts = (text || "").split("`");
  return element("td", "", ...parts.map((part, at) => (at % 2 ? element("code", part) : part)));
}

// One row for each field, and below one that is an object, or a list of them, the fields of that.
function fieldRows(spec, schema, before = "") {
  const shape = resolve(spec, schema);
  const required = shape.required || [];
  return Object.entries(shape.properties || {}).flatMap(([name, field]) => {
    const place = before + name;
    const cells = [element("td", "", element("code", place)), element("td", typeOf(spec, field)),
                   element("td", required.includes(name) ? "required" : ""), described(field.description)];
    const inner = field.$ref ? fieldRows(spec, field, `${place}.`)
                : field.items && field.items.$ref ? fieldRows(spec, field.items, `${place}[].`) : [];
    return [element("tr", "", ...cells), ...inner];
  });
}

function fields(spec, schema) {
  return element("table", "", ...fieldRows(spec, schema));
}

function parameterRow(parameter) {
  const cells = [element("td", "", element("code", parameter.name)), element("td", parameter.in),
                 described(parameter.description)];
  return element("tr", "", ...cells);
}

async function send(method, url, body) {
  const headers = {};
  const key = byId("key").value;
  if (key) headers.Authorization = `Bearer ${key}`;
  if (typeof body === "string") headers["Content-Type"] = "application/json";
  const answer = await fetch(url, { method, headers, body });
  const text = await answer.text();
  let shown = text;
  try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: as it is */ }
  return `${answer.status} ${answer.statusText}\n\n${shown}`;
}

function requestBody(spec, operation) {
  const content = operation.requestBody ? operation.requestBody.content : {};
  if (content["application/json"]) {
    const area = element("textarea");
    const example = Object.values(content["application/json"].examples || {})[0];
    area.value = example ? JSON.stringify(example.value, null, 2) : "{}";
    return { nodes: [fields(spec, content["application/json"].schema), area], read: () => area.value };
  }
  if (content["multipart/form-data"]) {
    const input = element("input");
    input.type = "file";
    const read = () => {
      const form = new FormData();
      if (input.files[0]) form.append("file", input.files[0]);
      return form;
    };
    return { nodes: [fields(spec, content["multipart/form-data"].schema), input], read };
  }
  return { nodes: [], read: () => undefined };
}

function pathInputs(parameters) {
  return parameters.filter((parameter) => parameter.in === "path").map((parameter) => {
    const input = element("input");
    input.placeholder = parameter.name;
    return { name: parameter.name, input };
  });
}

function tryIt(spec, method, path, operation, parameters) {
  const inputs = pathInputs(parameters);
  const query = element("input");
  query.placeholder = "query, e.g. limit=5";
  const body = requestBody(spec, operation);
  const output = element("pre");
  output.hidden = true;
  const button = element("button", "Send");
  button.addEventListener("click", async () => {
    let url = path;
    for (const { name, input } of inputs) url = url.replace(`{${name}}`, encodeURIComponent(input.value));
    if (query.value) url += `?${query.value}`;
    output.hidden = false;
    output.textContent = "…";
    try { output.textContent = await send(method.toUpperCase(), url, body.read()); }
    catch (error) { output.textContent = String(error); }
  });
  const hasQuery = parameters.some((parameter) => parameter.in === "query");
  return [...body.nodes, element("p", "", ...inputs.map(({ input }) => input), ...(hasQuery ? [query] : []), button), output];
}

function responses(spec, operation) {
  const rows = Object.entries(operation.responses).map(([status, response]) => {
    const json = response.content && response.content["application/json"];
    const shape = json ? typeOf(spec, json.schema) : "";
    return element("tr", "", element("td", status), element("td", response.description), element("td", shape));
  });
  return element("table", "", ...rows);
}

function operationNode(spec, method, path, operation) {
  const parameters = operation.parameters || [];
  const heading = element("summary", "", element("b", method.toUpperCase()), element("code", path),
                          document.createTextNode(operation.summary || ""));
  const body = element("div", "", ...(parameters.length ? [element("table", "", ...parameters.map(parameterRow))] : []),
                       ...tryIt(spec, method, path, operation, parameters), element("h4", "Answers"), responses(spec, operation));
  body.className = "body";
  return element("details", "", heading, body);
}

async function main() {
  const spec = await (await fetch("/openapi.json")).json();
  byId("version").textContent = spec.info.version;
  byId("summary").textContent = spec.info.summary || "";
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      byId("operations").append(operationNode(spec, method, path, operation));
    }
  }
}

main().catch((error) => { byId("operations").textContent = `The document could not be read: ${error}`; });
