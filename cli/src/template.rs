//! The template of chats in a GGUF file: from messages to the text that a model answers.

use kquant_moe::gguf::Gguf;
use kquant_moe::{Error, Result};
use minijinja::{Environment, ErrorKind, context};

/// Steps that a template may take: many times what a long talk needs, and an end for one that has none.
const FUEL: u64 = 50_000_000;

/// What somebody said.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
}

/// A file's own template.
pub struct Template {
    environment: Environment<'static>,
    begin: String,
    end: String,
}

impl Template {
    /// # Errors
    /// [`Error::Model`] for a file without one, and for one that is no template.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let source = gguf
            .get::<&str>("tokenizer.chat_template")?
            .ok_or_else(|| Error::Model(format!("{} has no chat template: leave --chat out", gguf.path().display())))?;
        let mut environment = Environment::new();
        // As Hugging Face sets it up, for whom the templates are written.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        environment.add_template_owned("chat", source.to_owned()).map_err(failed)?;
        let tokens = gguf.get::<Vec<&str>>("tokenizer.ggml.tokens")?.unwrap_or_default();
        let name = |key: &str| -> Result<String> {
            let id = gguf.get::<u32>(key)?;
            Ok(id.and_then(|id| tokens.get(id as usize)).copied().unwrap_or_default().to_owned())
        };
        let (begin, end) = (name("tokenizer.ggml.bos_token_id")?, name("tokenizer.ggml.eos_token_id")?);
        Ok(Self { environment, begin, end })
    }

    /// The text of a talk, up to where the answer begins. `think` is for models that can be told whether to.
    pub fn render(&self, messages: &[Message], think: Option<bool>) -> Result<String> {
        let template = self.environment.get_template("chat").map_err(failed)?;
        let (bos_token, eos_token) = (&self.begin, &self.end);
        let text = match think {
            None => template.render(context! { messages, bos_token, eos_token, add_generation_prompt => true }),
            Some(enable_thinking) => template
                .render(context! { messages, bos_token, eos_token, enable_thinking, add_generation_prompt => true }),
        };
        text.map_err(failed)
    }
}

fn failed(error: minijinja::Error) -> Error {
    Error::Model(format!("chat template: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kquant_moe::gguf::Header;

    fn template(source: &str) -> Result<Template> {
        let mut header = Header::new("file");
        header.set("tokenizer.chat_template", source).unwrap();
        header.set("tokenizer.ggml.tokens", &["<b>", "x", "<e>"]).unwrap();
        header.set("tokenizer.ggml.bos_token_id", &0_u32).unwrap();
        header.set("tokenizer.ggml.eos_token_id", &2_u32).unwrap();
        Template::from_gguf(&Gguf::from_vec("file", header.begin(Vec::new()).unwrap().finish().unwrap()).unwrap())
    }

    fn talk() -> Vec<Message> {
        [
            ("system", "Be brief."),
            ("user", "One & <two>?"),
            ("assistant", "<think>\nhm\n</think>\n\nThree."),
            ("user", "Why?"),
        ]
        .map(|(role, content)| Message { role, content: content.into() })
        .to_vec()
    }

    /// The constructs that templates of this family use: namespaces, slices, methods of strings, blocks on lines of their own.
    const CHATML: &str = "\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == \"user\" and message.content is string and not(message.content.startswith('<t>') and message.content.endswith('</t>')) %}
        {%- set ns.seen = true %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content and loop.index0 < ns.last %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content.strip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
";

    /// The text is what Jinja for Python gives, set up as Hugging Face does.
    #[test]
    fn a_talk_is_rendered_as_in_python() {
        let template = template(CHATML).unwrap();
        let text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne & <two>?<|im_end|>\n\
                    <|im_start|>assistant\nThree.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(template.render(&talk(), None).unwrap(), text);
        assert_eq!(template.render(&talk(), Some(true)).unwrap(), text);
        let quiet = format!("{text}<think>\n\n</think>\n\n");
        assert_eq!(template.render(&talk(), Some(false)).unwrap(), quiet);
        // What was thought last stays.
        let thought = template.render(&talk()[..3], None).unwrap();
        assert!(thought.contains("<think>\nhm\n</think>\n\nThree.<|im_end|>"), "{thought}");
    }

    #[test]
    fn templates_get_the_tokens_and_may_refuse() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {%- if m.role == 'user' %}\n  {{ m.content }}\n  {% endif %}\n{% endfor %}{{ eos_token }}\n";
        assert_eq!(template(source).unwrap().render(&talk(), None).unwrap(), "<b>  One & <two>?\n  Why?\n<e>");
        let refusal = template("{{ raise_exception('no system messages') }}").unwrap().render(&talk(), None);
        assert!(refusal.unwrap_err().to_string().contains("no system messages"));
        let broken = template("{% for %}").map(drop).unwrap_err().to_string();
        assert!(broken.starts_with("model: chat template"), "{broken}");
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}";
        assert!(template(endless).unwrap().render(&talk(), None).is_err());
        let bare = Gguf::from_vec("bare", Header::new("bare").begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
        let error = Template::from_gguf(&bare).map(drop).unwrap_err().to_string();
        assert!(error.contains("bare has no chat template"), "{error}");
    }
}
