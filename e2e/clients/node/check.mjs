// What each program here checks: a named function that throws where the client does not get what it should. A line for each.
export const baseURL = process.env.BASE_URL + '/v1';

export async function check(name, test) {
  try {
    await test();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`not ok ${name}: ${error.stack ?? error}`);
    process.exitCode = 1;
  }
}

// The model under test never ends by itself; some clients take an answer that was cut for an error.
export const grammar = 'root ::= [a-z ]{20}';

export const person = {
  type: 'object',
  properties: { name: { type: 'string', minLength: 1, maxLength: 12 }, age: { type: 'integer', minimum: 0, maximum: 150 } },
  required: ['name', 'age'],
  additionalProperties: false,
};

export const place = {
  type: 'object',
  properties: { place: { type: 'string', maxLength: 10 } },
  required: ['place'],
  additionalProperties: false,
};
