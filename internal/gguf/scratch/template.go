package scratch

// ChatTemplate asks the last of the user's messages and opens a thought; with thinking off it cuts the thought at once, as a budget of 0
// does. The rest of a chat is left out: it is for models that know single questions only.
const ChatTemplate = `{%- set asked = messages | selectattr('role', 'equalto', 'user') | list | last -%}
{{ '<|im_start|>user\n' + (asked.content if asked else '') + '<|im_end|>\n' }}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n<think>\n' }}
{%- if thinking is defined and not thinking -%}{{ '...\n\n...\n\n</think>' }}{%- endif -%}
{%- endif -%}`
