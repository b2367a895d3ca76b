import pytest
from jinja2 import UndefinedError
from jinja2.exceptions import SecurityError
from transformers import AddedToken

from tests.conftest import tiny_texts
from zoo.backbones.tiny import make_tokenizer
from zoo.data.meld import MELD
from zoo.models.causal_lm import CausalLM
from zoo.models.dialoguellm import DialogueLLM
from zoo.models.farcer import FARCER
from zoo.models.selector import ModalitySelector
from zoo.prompts import CONTROL, count_control_tokens, escape, label_words, load_template, parse_label, render
from zoo.schema import Labels, Sample, Turn

LABELS = MELD.labels
SAID = LABELS.names

# ---- samples, all lines made up
TURNS = (
    Turn("u0", "Ada", "Where is my umbrella?", "neutral", {"video": "a hallway", "audio": "calm"}),
    Turn("u1", "Bela", "I sat on it.", "sadness", {"video": "he looks down"}),
    Turn("u2", "Ada", "You did what?", "anger", {"video": "she frowns", "audio": "a raised voice", "scene": "kitchen"}),
)


def sample(turns=TURNS, name="dia0"):
    return Sample(f"meld/test/{name}_{turns[-1].id}", f"meld/test/{name}", LABELS, turns[-1], tuple(turns[:-1]))


CAT = (Turn("u0", "Cleo", "Behind you!", "fear"), Turn("u1", "Dan", "Only the cat.", "neutral", {"audio": "low"}))
EXAMPLES = (sample(CAT, name="dia7"), sample((Turn("u0", "", "Hooray!", "joy"),), name="dia8"))


def text_of(template, s=None, **options):
    return render(template, s or sample(), **{"window": 2, "words": SAID} | options)


@pytest.fixture
def make(tmp_path):
    """Template text -> Template."""

    def write(text):
        path = tmp_path / f"t{len(list(tmp_path.iterdir()))}.txt"
        path.write_text(text, encoding="utf-8")
        return load_template(str(path), DialogueLLM.templates)

    return write


# ---- answers
@pytest.mark.parametrize(
    "answer, label",
    [
        ("joy", "joy"),
        ("Joy.", "joy"),
        ('  "joy"\n', "joy"),
        ("\n\n JOY!\nanger", "joy"),  # the first line that says something
        ("The emotion is joy", "joy"),
        ("**joy**", "joy"),
        ("joy, pure joy", "joy"),
        ("<answer>fear</answer>", "fear"),
        ("Emotion:sadness", "sadness"),
        ("neutral\n\nnot joy", "neutral"),
        ("joy or anger", None),
        ("neutral, joy, anger", None),
        ("not joy", None),
        ("It isn't joy", None),
        ("It isn’t joy", None),
        ("It cannot be joy.", None),
        ("neither joy", None),
        ("joy? no", None),
        ("without joy", None),
        ("non-neutral", None),
        ("neutral, I think not", None),
        ("joyful", None),
        ("enjoy", None),
        ("joy_1", None),
        ("ad nauseam", None),
        ("4", None),
        ("happy", None),
        ("The answer is\njoy", None),
        ("", None),
        (" \n\t\n", None),
        ("\x00", None),
    ],
)
def test_parse_label(answer, label):
    assert parse_label(answer, SAID) == (None if label is None else SAID.index(label))


def test_every_word_is_found_at_its_own_index():
    assert [parse_label(f"It is {word.upper()}.", SAID) for word in SAID] == list(range(7))
    assert [parse_label(word, SAID[::-1]) for word in SAID] == list(range(7))[::-1]


def test_words_with_other_characters_and_of_two_parts():
    said = ("c++", "very happy", "freude", "überraschung", "no emotion", "(none)")
    for i, word in enumerate(said):
        assert parse_label(f"It is {word.upper()}, I think", said) == i  # a label's own "no" is no negation
    assert parse_label("not no emotion", said) is None
    assert parse_label("c", said) is None and parse_label("happy", said) is None


# ---- verbalizer
def test_words():
    assert label_words(LABELS) == LABELS.names == label_words(LABELS, {})
    said = label_words(LABELS, {"joy": "joyful", "excited": "thrilled"})  # of another corpus
    assert said == ("neutral", "surprise", "fear", "sadness", "joyful", "disgust", "anger")
    assert parse_label("joyful", said) == 4 and parse_label("joy", said) is None


@pytest.mark.parametrize(
    "verbalizer",
    [
        {"joy": "anger"},
        {"joy": "glad", "anger": "glad"},
        {"joy": "Anger"},  # answers are read in any case
        {"joy": " anger"},
        {"joy": ""},
        {"joy": "  "},
    ],
)
def test_words_that_cannot_be_told_apart_are_refused(verbalizer):
    with pytest.raises(ValueError, match="two labels of meld the same word, or one an empty word: .*'joy'"):
        label_words(LABELS, verbalizer)


def test_swapped_words_are_allowed():
    assert label_words(Labels("two", ("yes", "no")), {"yes": "no", "no": "yes"}) == ("no", "yes")


# ---- templates
def test_a_missing_template_lists_the_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt template 'defualt': give a file, or one of default, short"):
        load_template("defualt", DialogueLLM.templates)
    with pytest.raises(FileNotFoundError, match="give a file, or one of default, instruction$"):
        load_template("short", CausalLM.templates)


def test_a_template_by_path_and_by_name(make):
    assert text_of(make("{{ target.text }} ->\n \n")) == "You did what? ->"  # ends where the answer begins
    assert load_template("short", DialogueLLM.templates) is load_template("short", DialogueLLM.templates)


@pytest.mark.parametrize("text", ["{{ target.text", "{% for t in history %}", "{% nonsense %}", "{{ 1 | nonsense }}"])
def test_a_template_that_is_no_template(make, text):
    with pytest.raises(ValueError, match=r"prompt template .*t0\.txt: "):
        make(text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ target.__init__.__globals__ }}",
        "{{ labels.append('x') }}",
        "{% for x in range(10 ** 9) %}.{% endfor %}",
    ],
)
def test_a_template_cannot_reach_python_or_change_what_it_sees(make, text):
    template = make(text)
    with pytest.raises((SecurityError, OverflowError)):
        text_of(template)


@pytest.mark.parametrize("text", ["{% include '/etc/hosts' %}", "{% import 'os' as os %}", "{{ open('/etc/hosts') }}"])
def test_a_template_cannot_read_files(make, text):
    template = make(text)
    with pytest.raises((UndefinedError, TypeError)):
        text_of(template)


@pytest.mark.parametrize("text", ["{{ speaker }}", "{{ target.txt }}", "{{ target.descriptions.smell }}"])
def test_an_undefined_name_is_an_error_not_an_empty_string(make, text):
    template = make(text)
    with pytest.raises(UndefinedError):
        text_of(template)


def test_the_answer_cannot_be_seen(make):
    """Neither the target's label nor the labels of earlier turns are in reach of a template."""
    for text in ("{{ target.label }}", "{{ history[0].label }}", "{{ sample }}"):
        with pytest.raises(UndefinedError):
            text_of(make(text))


# ---- what a template sees
def test_window_and_order(make):
    template = make("{% for t in history %}{{ t.speaker }}:{{ t.text }}|{% endfor %}>{{ target.speaker }}")
    first, second = "Ada:Where is my umbrella?|", "Bela:I sat on it.|"
    assert text_of(template, window=0) == ">Ada"
    assert text_of(template, window=1) == f"{second}>Ada"
    assert text_of(template, window=2) == text_of(template, window=99) == f"{first}{second}>Ada"


def test_only_the_asked_kinds_are_seen(make):
    template = make(
        "{% for t in history %}{{ t.descriptions | dictsort }};{% endfor %}{{ target.descriptions | dictsort }}"
    )
    assert text_of(template) == "[];[];[]"
    assert text_of(template, descriptions=("audio",)) == "[('audio', 'calm')];[];[('audio', 'a raised voice')]"
    both = text_of(template, descriptions=["audio", "video"])
    assert both.endswith("[('audio', 'a raised voice'), ('video', 'she frowns')]") and "kitchen" not in both


def test_labels_and_examples(make):
    template = make(
        "{{ labels | join('/') }}\n"
        "{% for e in examples %}{% for t in e.history %}({{ t.text }}){% endfor %}{{ e.target.text }}"
        "{{ e.target.descriptions | dictsort }}={{ e.label }};{% endfor %}"
    )
    names = "neutral/surprise/fear/sadness/joy/disgust/anger"
    assert text_of(template) == names
    shown = text_of(template, examples=EXAMPLES, descriptions=("audio",), window=1)
    assert shown == f"{names}\n(Behind you!)Only the cat.[('audio', 'low')]=neutral;Hooray![]=joy;"
    assert text_of(template, examples=EXAMPLES[::-1], window=0) == f"{names}\nHooray![]=joy;Only the cat.[]=neutral;"
    verbalizer = {"joy": "joyful"}
    shown = text_of(template, examples=EXAMPLES[1:], words=label_words(LABELS, verbalizer), verbalizer=verbalizer)
    assert shown == f"{names.replace('joy', 'joyful')}\nHooray![]=joyful;"


def test_an_example_without_label_is_refused(make):
    unlabelled = sample((Turn("u0", "Dan", "Hm."),), name="dia9")
    with pytest.raises(ValueError, match=r"needs its label; \['meld/test/dia9_u0'\] have none"):
        text_of(make("x"), examples=[*EXAMPLES, unlabelled])


def test_texts_are_not_markup(make):
    """Neither HTML-escaped nor read as a template again."""
    s = sample((Turn("u0", "<b>", "{{ labels }} & <i>'\"", "joy"),))
    assert text_of(make("{{ target.speaker }}{{ target.text }}"), s) == "<b>{{ labels }} & <i>'\""


# ---- control tokens
CONTROLS = (
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|reserved_special_token_12|>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<image>",
    "<video>",
    "</s>",
    "<s>",
    "<pad>",
    "<unk>",
    "[PAD]",
    "<think>",
    "</answer>",
    "<tool_call>",
    "<start_of_turn>",
)


@pytest.mark.parametrize("token", CONTROLS)
def test_control_tokens_are_written_apart(token):
    apart = f"{token[0]} {token[1:-1]} {token[-1]}"
    assert escape(f"a {token}b") == f"a {apart}b"
    assert escape(token.upper()) == apart.upper()
    assert escape(escape(token)) == apart
    assert token not in escape(f"{token[0]}{token}{token}{token[-1]}")  # nor do parts close up to a new one


@pytest.mark.parametrize("text", ["a < b > c", "<3", "[sic]", "<b>", "5 <| 6 |> 7", "s>", "[INSTEAD]", "<|a b|>", ""])
def test_other_text_is_left_alone(text):
    assert escape(text) == text and not CONTROL.search(text)


def test_a_tokenizer_never_finds_a_special_token_in_escaped_text():
    tokenizer = make_tokenizer(tiny_texts(2), 400, lowercase=False)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROLS])
    special = {tokenizer.convert_tokens_to_ids(token) for token in CONTROLS}
    assert len(special) == len(CONTROLS)
    text = "Well, " + "! ".join(CONTROLS) + "".join(CONTROLS) + " then"
    assert special <= set(tokenizer(text)["input_ids"])  # unescaped they are all there
    ids = tokenizer(escape(text), add_special_tokens=False)["input_ids"]
    assert not set(ids) & special and tokenizer.decode(ids) == escape(text)


def test_every_text_of_a_sample_is_escaped(make):
    """Speakers, utterances and descriptions, of the target, the history and the examples."""
    bad = Turn("u0", "Ada</s>", "one [INST]", "joy", {"video": "a <image>"})
    end = Turn("u1", "<|eot_id|>", "two <<SYS>>", "joy", {"video": "</s>"})
    template = make(
        "{% for e in examples %}"
        "{{ e.target.speaker }}{{ e.target.text }}{{ e.target.descriptions.video }}\n{% endfor %}"
        "{% for t in history %}{{ t.speaker }}{{ t.text }}{{ t.descriptions.video }}\n{% endfor %}"
        "{{ target.speaker }}{{ target.text }}{{ target.descriptions.video }}"
    )
    shown = text_of(template, sample((bad, end)), descriptions=("video",), examples=[sample((bad,))])
    one, two = "Ada< /s >one [ INST ]a < image >", "< |eot_id| >two < <SYS> >< /s >"
    assert shown.split("\n") == [one, one, two]


def test_samples_with_control_tokens_are_counted():
    texts = ["fine", "a </s> b", "[INST] x [/INST]", "<3"]
    samples = [sample((Turn("u0", "", "</s>"), Turn("u1", "", text, "joy"))) for text in texts]
    assert count_control_tokens(samples) == 2  # own utterances only: each is some sample's own
    assert count_control_tokens([]) == 0


# ---- the templates of the papers, written out
DIALOGUELLM = DialogueLLM.templates
HEAD = """\
Below is an instruction for a classification task, with the input it applies to. Answer with the label alone.

### Instruction:
Taking the speaker and the context into account, name the emotion of the input utterance. \
Choose from: neutral, surprise, fear, sadness, joy, disgust, anger.
"""
QUESTION = """\
Which emotion does the last utterance of the dialogue express? \
Answer with one of: neutral, surprise, fear, sadness, joy, disgust, anger.

"""
GOLDEN = {
    ("default", "plain"): HEAD + "\n### Input:\nAda: You did what?\n\n### Response:",
    ("default", "context"): HEAD
    + """
### Context:
Ada: Where is my umbrella?
Bela: I sat on it.

### Input:
Ada: You did what?

### Response:""",
    ("default", "description"): HEAD
    + """
### Context:
Video description: she frowns

### Input:
Ada: You did what?

### Response:""",
    ("default", "all"): HEAD
    + """
### Samples:
Dan: Only the cat. => neutral
Hooray! => joy

### Context:
Ada: Where is my umbrella?
Bela: I sat on it.
Video description: she frowns
Audio description: a raised voice

### Input:
Ada: You did what?

### Response:""",
    ("short", "plain"): "You did what?\nemotion:",
    ("short", "context"): "Ada: Where is my umbrella?\nBela: I sat on it.\nYou did what?\nemotion:",
    ("short", "description"): "You did what?\nvideo: she frowns\nemotion:",
    ("short", "all"): """\
Only the cat.
emotion: neutral

Hooray!
emotion: joy

Ada: Where is my umbrella?
Bela: I sat on it.
You did what?
video: she frowns
audio: a raised voice
emotion:""",
    ("instruction", "plain"): QUESTION + "Dialogue:\nAda: You did what?\nAnswer:",
    ("instruction", "all"): QUESTION
    + """\
Dialogue:
Cleo: Behind you!
Dan: Only the cat.
Audio description: low
Answer: neutral

Dialogue:
Hooray!
Answer: joy

Dialogue:
Ada: Where is my umbrella?
Bela: I sat on it.
Ada: You did what?
Video description: she frowns
Audio description: a raised voice
Answer:""",
    ("causal_lm", "plain"): "Ada: You did what?\nemotion:",
    ("causal_lm", "context"): "Ada: Where is my umbrella?\nBela: I sat on it.\nAda: You did what?\nemotion:",
    ("causal_lm", "description"): "Ada: You did what?\nvideo: she frowns\nemotion:",
    ("causal_lm", "all"): """\
Cleo: Behind you!
Dan: Only the cat.
audio: low
emotion: neutral

Hooray!
emotion: joy

Ada: Where is my umbrella?
Bela: I sat on it.
Ada: You did what?
video: she frowns
audio: a raised voice
emotion:""",
}
OPTIONS = {
    "plain": {"window": 0},
    "context": {"window": 2},
    "description": {"window": 0, "descriptions": ("video",)},
    "all": {"window": 2, "descriptions": ("video", "audio"), "examples": EXAMPLES},
}


@pytest.mark.parametrize("name, options", GOLDEN)
def test_golden(name, options):
    place = {"causal_lm": "causal_lm/default", "instruction": "causal_lm/instruction"}  # as PAPER/NAME
    template = load_template(place.get(name, name), DIALOGUELLM)
    assert text_of(template, **OPTIONS[options]) == GOLDEN[name, options]


SELECTOR = ModalitySelector.templates
DECIDE = """\
You are an expert in recognising emotions. Decide whether the emotion of the target utterance can be told without the \
audio and image captions, or whether they are needed.

Decision flow:
1. Is the text enough? Can the emotion be told from the words alone?
2. Do the captions add something? Do voice or picture make it clearer?
3. Is there a conflict? Do voice or picture contradict the words?

Conversation:
"""
RULES = """
Target utterance: <Ada: "You did what?">

Keep the captions if the words leave the emotion open, or if voice or picture strengthen or overrule them.
Remove the captions only if the words carry the emotion plainly and voice and picture add nothing to it.

Answer with:
1. Yes, the captions should remain / No, the captions should be removed
2. The reason in at most 50 words."""
EXPERT = "You are an expert in the analysis of emotions. The conversation between '### ###' has several speakers"
DESCRIBED = (
    " and comes with descriptions of how they sound and look. Weigh the words themselves; do not rely on the "
    "descriptions alone. "
)
CHOOSE = f'\nSelect the emotion of <Ada: "You did what?"> from <{", ".join(SAID)}>:'
SELECTION = {
    ("selector", "plain"): f'{DECIDE}Ada: "You did what?"{RULES}',
    ("selector", "context"): f'{DECIDE}Ada: "Where is my umbrella?"\tBela: "I sat on it."\tAda: "You did what?"{RULES}',
    ("selector", "description"): f'{DECIDE}Ada: "You did what?"\nImage caption: she frowns{RULES}',
    # the picture of the target alone; a voice in one word becomes a sentence, as in the authors' data
    ("selector", "all"): DECIDE
    + 'Ada: "Where is my umbrella?"(Audio caption: The speaker\'s tone is calm)\tBela: "I sat on it."\t'
    + f'Ada: "You did what?"(Audio caption: a raised voice)\nImage caption: she frowns{RULES}',
    ("decision", "plain"): "Ada: You did what?\ncaptions needed:",
    ("decision", "context"): "Ada: Where is my umbrella?\nBela: I sat on it.\nAda: You did what?\ncaptions needed:",
    ("decision", "description"): "Ada: You did what?\nvideo: she frowns\ncaptions needed:",
    ("decision", "all"): """\
Ada: Where is my umbrella?
Bela: I sat on it.
Ada: You did what?
video: she frowns
audio: a raised voice
captions needed:""",
    ("classifier", "plain"): f'{EXPERT}. ### Ada: "You did what?" ###{CHOOSE}',
    ("classifier", "context"): EXPERT
    + f'. ### Ada: "Where is my umbrella?"\tBela: "I sat on it."\tAda: "You did what?" ###{CHOOSE}',
    ("classifier", "description"): EXPERT
    + f'{DESCRIBED}### Ada: "You did what?" ###\nThe video of the target utterance shows: she frowns{CHOOSE}',
    ("classifier", "all"): EXPERT
    + f'{DESCRIBED}### Ada: "Where is my umbrella?"(The speaker\'s tone is calm)\tBela: "I sat on it."\t'
    + f'Ada: "You did what?"(a raised voice) ###\nThe video of the target utterance shows: she frowns{CHOOSE}',
}


@pytest.mark.parametrize("name, options", SELECTION)
def test_golden_selection(name, options):
    shown = {k: v for k, v in OPTIONS[options].items() if k != "examples"}  # these prompts solve none
    assert text_of(load_template(name, SELECTOR), **shown) == SELECTION[name, options]


def test_golden_selection_in_detail():
    """The answer's form; speakers without a name; kinds beside audio; descriptions that only earlier turns have."""
    system = load_template("system", SELECTOR).render()
    assert system == "Write your answer in this form:\n<think>\n...\n</think>\n<answer>\n...\n</answer>"
    for phrase in ("Yes, the captions should remain", "No, the captions should be removed"):
        assert RULES.count(phrase) == 1  # what the rewards look for
    s = sample((Turn("u0", "", "Hm.", "joy", {"speech": "low"}), Turn("u1", "", "Oh!", "joy", {"stage": "(knocks)"})))
    kinds = {"descriptions": ("speech", "stage")}
    said = '"Hm."(Speech caption: low)\t"Oh!"(Stage caption: (knocks))\nTarget utterance: <"Oh!">\n'
    assert said in text_of(load_template("selector", SELECTOR), s, **kinds)
    classifier = load_template("classifier", SELECTOR)
    assert '### "Hm."(low)\t"Oh!"((knocks)) ###\nSelect the emotion of <"Oh!"> from' in text_of(classifier, s, **kinds)
    earlier = sample((Turn("u0", "", "Hm.", "joy", {"audio": "low"}), Turn("u1", "", "Oh!", "joy")))
    assert DESCRIBED in text_of(classifier, earlier, descriptions=("audio",))
    assert DESCRIBED not in text_of(classifier, earlier, descriptions=("audio",), window=0)


def test_golden_without_speaker():
    s = sample((Turn("u0", "", "Mind the ladder.", "fear"), Turn("u1", "", "Oh!", "surprise")))
    expected = HEAD + "\n### Context:\nMind the ladder.\n\n### Input:\nOh!\n\n### Response:"
    assert text_of(load_template("default", DIALOGUELLM), s) == expected
    assert text_of(load_template("default", CausalLM.templates), s) == "Mind the ladder.\nOh!\nemotion:"
    assert text_of(load_template("short", DIALOGUELLM), s) == "Mind the ladder.\nOh!\nemotion:"


def test_there_are_no_other_templates():
    """A new one needs its golden text here; those of FARCER, which see lines and slots, are in
    tests/models/test_farcer.py."""
    found = {p.stem for p in DIALOGUELLM.glob("*")} | {f"causal_lm {p.stem}" for p in CausalLM.templates.glob("*")}
    assert found == {"default", "short", "causal_lm default", "causal_lm instruction"}
    assert {p.stem for p in FARCER.templates.glob("*")} == {"chat", "plain"}
    assert {p.stem for p in SELECTOR.glob("*")} == {"system"} | {name for name, _ in SELECTION}
