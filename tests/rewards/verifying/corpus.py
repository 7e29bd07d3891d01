# ruff: noqa: E501 - tables of answers
r"""Answers of our own as models phrase and dress them, in several languages, right ones and wrong ones.

Most rows come from tables of phrases: each phrase is filled with a right and with a wrong value. `SINGLE` holds rows that
stand alone. A row is (kind, verifier, reference, choices, response, verdict).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

C, W, U = "correct", "wrong", "unparsable"
ANGLES = ["60°", "70°", "80°", "85°"]
COLORS = ["red", "light blue", "blue", "dark green"]
YES_NO = ["Yes", "No"]


class Row(NamedTuple):
    kind: str
    verifier: str
    reference: Any
    choices: list[str] | None
    response: str
    verdict: str


# --- a letter in a phrase: filled with B (right) and C (wrong) ---
LETTER_PHRASES = {
    "letter: final line": """
        Final answer: {}
        **Final Answer:** {}
        Final Answer: ({})
        The final answer is {}.
        The final answer is: ({})
        Answer: {}
        **Answer:** {}.
        **Answer: ({})**
        Answer - {}
        Correct answer: {}
        Correct option: ({})
        ### Answer\\n{}
        ## Final answer\\n\\n**{}**
        The answer:\\n{}
        #### {}
        \\boxed{{{}}}
        $\\boxed{{\\text{{{}}}}}$
        \\[\\boxed{{({})}}\\]
        \\fbox{{{}}}
        <answer>{}</answer>
        <answer>The answer is ({}).</answer>
        <|begin_of_box|>{}<|end_of_box|>
        [ANSWER]{}[/ANSWER]
        {{"answer": "{}"}}
    """,
    "letter: sentence": """
        The answer is {}.
        The answer is ({}).
        So the answer is {}.
        Therefore, the correct answer is {}.
        Hence, the correct option is ({}).
        The correct option letter is {}.
        The correct choice is **{}**.
        The answer would be {}.
        The answer should be ({}).
        The answer must be {}, given the two equal angles.
        The answer is {} because the two sides are equal.
        The answer is {}, since the others are too large.
        The answer is option {}: the second picture.
        The best answer is {}
        My answer is {}.
        I think the answer is {}.
        The answer to the question is {}.
        The answer to this problem is option ({}).
        Therefore option ({}) is correct.
        Option {} is the correct answer.
        ({}) is correct.
        {} is the right choice.
        I choose {}.
        I would go with {} here, since it is closed.
        I pick option {}.
        We select ({}).
        After ruling out the rest, I settled on {}.
        Thus it corresponds to option ({}).
        This matches choice {}.
        which is option {}.
        ANSWER IS {}. A is incorrect.
    """,
    "letter: first": """
        {}
        ({})
        {}.
        {})
        **{}**
        *{}*
        `{}`
        "{}"
        “{}”
        {}\\n\\nThe two base angles are equal, so the third is what is left.
        {}. Because the base angles are equal.\\nThat is all.
        ({}) The base angles are equal, so the third is what is left of the sum.
        **{}**\\n\\nWe know the sum of the angles.
        Option {}
        Choice ({})
    """,
    "letter: Chinese": """
        答案：{}
        答案是{}。
        所以答案是({})。
        故选：{}。
        故选{}．
        因此选{}
        因此，正确答案是{}。
        本题正确答案为{}。
        正确选项是 {}
        选项{}正确。
        选项为({})。
        综上，故选{}。
        应选{}。
        最终答案：{}
        {}。其余都不对
    """,
    "letter: other languages": """
        正解は{}です。
        答えは {} です。
        回答：{}
        정답은 {}입니다.
        정답: {}
        Antwort: {}
        Die richtige Antwort ist {}.
        Die Lösung ist ({}).
        La bonne réponse est {}.
        Réponse : {}
        La réponse est ({}).
        Respuesta: {}
        La respuesta correcta es {}.
        La respuesta correcta es la opción {}.
        A resposta correta é {}.
        Resposta final: {}
        La risposta corretta è {}.
        Ответ: {}
        Правильный ответ: {}
    """,
    "letter: thought": """
        <think>It may be A. Final answer: A? No.</think>\\n\\n{}
        <think>\\boxed{{A}} would be odd.</think>The answer is ({}).
        it may be A</think>\\n**Answer:** {}
        <think>Let me see.</think><answer>{}</answer>
        <think>A? no</think>\\n\\n\\boxed{{{}}}
    """,
    "letter: several statements": """
        The answer is A at first sight.\\n\\nWe look again. The answer is {}.
        Option A is too small. Option D is too large. So the answer is ({}).
        The first sum is \\boxed{{14}}.\\n\\nAnswer: {}
        Final answer: A\\nWait, that is wrong.\\nFinal answer: {}
        A looks right. It is not.\\n\\nTherefore, the correct answer is {}.\\n\\nLet me know if you need more.
    """,
}
LETTER_PHRASES["letter: plain sentence"] = """
    The shape seen from above is option ({}).
    The measure of the angle at the base is ({}).
    Since the two are equal, the length asked for is {}.
    We compare all bars.\\nThe option that fits is {}.
    所以这个角的大小为{}。
    So the value that we look for is **({}).**
    This is what I found:\\n\\n({})\\n\\nThe two sides are equal.
    Here is my reply:\\n\\n{}\\n\\nThe two sides are equal, so the others are too large.
"""
LETTER_PHRASES["letter: more behind it"] = """
    The two sides are equal, so it must be option ({}).\\n\\nI hope this helps! Let me know if you have any other questions.
    So the third angle is ({}).\\n\\nIs there anything else I can help you with?
    The answer is {}.\\n\\nQuestion: How many eggs are left?\\nSolution: 12 - 4 = 8 eggs.
    The answer is ({}).\\n\\nQuestion: Which jar is full?\\nChoices:\\n(A) the left one\\n(B) the right one
    {})\\n\\nThe others:\\n- A is true of all squares.\\n- D is true of all circles.
    We are given:\\n(A) 60°\\n(B) 70°\\n(C) 80°\\n(D) 85°\\n\\nThe measure is ({}).
"""
LETTER_WITH_TEXT = """
    {} ({t})
    ({}) {t}
    {}. {t}
    {}) {t}
    {}: {t}
    Option {}: {t}
    The answer is {} ({t}).
    The answer is ({}) {t}.
    **({}) {t}**
    Final answer: {}. {t}
    Answer: {} - {t}
    \\boxed{{{}. {t}}}
    Therefore, the correct answer is **{}: {t}**.
    The correct option is:\\n({}) {t}
    答案是{}：{t}。
    <answer>({}) {t}</answer>
    The value that we look for is ({}) {t}.
    The picture shows ({}) {t}.
    Let us see.\\n\\nOption {}) {t}
    Option {}, "{t}," is the correct answer.
    Here is the answer to the question:\\n\\n({}) {t}\\n\\nThat is all.
"""
OPTION_TEXT = """
    {t}
    {t}.
    The answer is {t}.
    So, the answer is {t}.
    Final answer: {t}
    **Answer:** {t}
    \\boxed{{{t}}}
    Therefore, it is {t}.
    答案：{t}
    <answer>{t}</answer>
"""

# --- a number in a phrase: filled with the right one and with a wrong one ---
NUMBER_PHRASES = {
    "number: final line": """
        Final answer: {}
        **Final answer:** {}
        **Final Answer:** \\({}\\)
        Final answer: \\[{}\\]
        Final answer: $ {} $
        ✅ Final Answer: **{}**
        The final answer is ${}$. I hope it is correct.
        Final Answer: The final answer is ${}$. I hope it is correct.
        Answer: {}
        **Answer**: {}
        **Final Answer**\\n\\[ {} \\]
        The final answer is\\n\\n$${}$$
        ### Final Answer:\\n\\n{}
        #### {}
        \\boxed{{{}}}
        $\\boxed{{{}}}$
        Thus the answer is \\[ \\boxed{{{}}} \\]
        \\fbox{{{}}}
        \\boxed {}
        <answer> {} </answer>
        <think>5? no</think><answer>{}</answer>
        <think>\\boxed{{5}}? no</think>\\n\\nThe answer is {}.
        The answer is <|begin_of_box|>{}<|end_of_box|>
        {{"solution": "we count", "short answer": "{}"}}
        {{"answer": {}}}
        Final answer: "{}"
        Final answer: `{}`
        Final answer: <b>{}</b>
        Final answer: [{}]
        Final answer: {}</s>
        \\boxed{{{}}}<|im_end|>
    """,
    "number: sentence": """
        The answer is {}.
        The answer is **{}**.
        So the answer is {}.
        Hence the answer is {} in total.
        The answer would be {}.
        Answer is {}
        The answer is {} because the rest is hidden.
        The correct answer is {}.
        Therefore, the missing number is {}.
        Thus, x = {}.
        So there are {} of them.
    """,
    "number: other languages": """
        答案：{}
        答案是{}。
        所以答案为 {}。
        最终答案：{}
        答：一共有{}个。
        答えは{}です。
        回答：{}
        정답은 {}입니다.
        Antwort: {}
        Die Antwort ist {}.
        Endgültige Antwort: {}
        La réponse est {}.
        Réponse finale : {}
        Respuesta: {}
        La respuesta final es {}.
        Resposta: {}
        La risposta è {}.
        Ответ: {}
    """,
}
NUMBER_VERIFIERS = ("number", "relaxed", "math")  # each is asked with every phrase
IN_SENTENCES_ONLY = """
    The fence is **{} m** long.\\n\\nI hope this helps! Let me know if you have any other questions.
    The lowest bar has a height of **{}**.\\n\\nIt stands right beside the door.
    We take the red ones away.\\n\\nThis leaves:\\n{}
    The pin is about ({}) inches long.
    The first bar is {} times larger than the second.
    So the answer is {} with a total income of $940.
    So there are {} streets that have 4 lamps.
    The age gap is {} years, with the girl being 13 and the man being 42.
    After taking all cones away, there are {} shapes left:\\n\\n1. Red cubes\\n2. Green balls
    The total is {}.\\n\\nQuestion: How many eggs are left?\\nSolution: we count them.
    پاسخ: {}
    Jawaban: {}
    Antwoord: {}
    There are {} objects.
    There are {} people in the picture. The rest are dogs.
    The perimeter is {} cm.
    The age gap between the two is {} years.
    After removing 3 red balls, there are {} balls left.
    8 + 9 makes more than ten.\\n\\nThe total is {}.
    In 2015, the share was {}.
    因此，一共有{}个苹果。
"""

# (reference, right ones, wrong ones): one value in several dresses
SAME_NUMBER = [
    ("number", "1234567", "1,234,567|1 234 567|1.234.567|12,34,567|1234567.0|1\\,234\\,567|$1,234,567$", "123456|1,234,568|1234.567"),
    ("number", "1000.99", "1,000.99|1000,99|1.000,99|1 000,99|1'000.99", "100099|10.0099"),
    ("number", "0.5", "1/2|½|\\frac{1}{2}|\\frac12|\\dfrac{1}{2}|0,5|.5|50%|one half|half|5 \\times 10^{-1}|5e-1", "2|1/3|5%|-0.5"),
    ("number", "2 1/3", "7/3|2\\frac{1}{3}|\\(2\\frac{1}{3}\\)|2⅓|2.333|\\frac{7}{3}", "2/3|21/3|-7/3"),
    ("number", "-3", "−3|-3.0|negative three|minus 3|negative 3|$-3$", "3|-30|three"),
    ("number", "23", "twenty-three|twenty three|23.|23 apples|x = 23|\\text{23}|about 23", "twenty|32|22"),
    ("number", "305", "three hundred and five|305 eggs|305.00", "three hundred|350"),
    ("number", "12 cm", "12cm|12 centimeters|0.12 m|120 mm|12 \\text{ cm}|12\\,\\mathrm{cm}|12厘米|12 센티미터", "12 m|12 kg|13 cm|12 cm^2"),
    ("number", "12 cm^2", "12 cm²|12 square centimeters|12 sq cm|12平方厘米", "12 cm|12 m^2"),
    ("number", "36 km/h", "36 kmph|36 kilometers per hour|10 m/s|36 km per hour", "36 m/s|36 km"),
    ("number", "20 °C", "20°C|20 degrees Celsius|20℃|20", "21 °C|20 m"),
    ("number", "35°", "35 degrees|35^\\circ|35^{\\circ}|\\angle A = 35^\\circ|35度", "53°|3.5°"),
    ("number", "28%", "28 percent|28 per cent|28 pct|28 percentage points|28\\%|0.28|28", "2.8%|82%"),
    ("number", "$5", "5 dollars|\\$5|$5.00|5 USD|five dollars|500 cents", "€5|$50|5 cents"),
    ("number", "2.74 €", "2,74 €|€2.74|2.74 euros", "$2.74|27.4 €"),
    ("number", "5 yuan", "5元|5 RMB|¥5", "5 dollars|50元"),
    ("number", "40000", "4万|40,000|40 thousand|4 \\times 10^4|4×10⁴|4e4", "4|4亿|4 million"),
    ("number", "1.6e-19", "1.6 × 10⁻¹⁹|1.6 \\times 10^{-19}|1.6*10^-19|1.6 x 10^(-19)", "1.6e-18|1.6 × 10¹⁹|2.6e-19"),
    ("number", "1/3", "0.333|0.\\overline{3}|0.3333…|33.3%|\\frac{1}{3}", "0.3|3|0.35"),
    ("number", "3 hours", "3 h|180 minutes|3小时|3 hrs", "3 minutes|30 h"),
    ("relaxed", "1,234", "1234|1,200|1234.0|$1,234", "1,000|12340"),
    ("relaxed", "57", "57.0%|58|$57$|57 units", "75|-57|5.7"),
    ("relaxed", "2010", "2010|2010.", "2011|2005|1910"),
    ("relaxed", "light blue", "Light Blue|light blue.|\\text{light blue}|the light blue", "blue|dark blue"),
    ("relaxed", "0", "0|0.00|zero|0%", "0.01|1"),
    ("math", "18", "18 dollars|18 eggs|18 points|18 miles per hour|18 L|18 people|$18$|18.0|\\text{18}|18 years old|eighteen|\\$18", "81|18/2|-18|180"),
    ("math", "1,000", "1000|1 000|1{,}000|1,\\!000|10^3|1\\,000", "100|1.5|10000"),
    ("math", "\\frac{1}{2}", "0.5|1/2|½|\\dfrac12|2^{-1}|\\frac{2}{4}|\\left(\\frac{1}{2}\\right)", "2|-\\frac{1}{2}|\\frac{1}{3}|0.51"),
    ("math", "\\sqrt{3}", "√3|3^{1/2}|\\sqrt{3} cm|sqrt(3)|\\frac{3}{\\sqrt{3}}", "3|\\sqrt{2}|-\\sqrt{3}|√5"),
    ("math", "4\\sqrt{2}", "4√2|\\sqrt{32}|4 \\cdot \\sqrt{2}|4*sqrt(2)|4\\sqrt(2)|2^{5/2}|4√2 cm", "4|\\sqrt{2}|4\\sqrt{3}|8"),
    ("math", "\\frac{\\pi}{2}", "pi/2|π/2|\\pi/2|0.5\\pi|\\frac{1}{2}\\pi", "\\pi|2\\pi|\\frac{\\pi}{3}|1.57"),
    ("math", "36\\pi", "36π|36 \\pi|36π square units|36*pi|36\\pi \\text{ cm}^2", "36|63\\pi|6\\pi"),
    ("math", "x \\leq 5", "x ≤ 5|x <= 5|5 \\geq x|(-\\infty, 5]", "x < 5|x \\geq 5|x \\leq 6"),
    ("math", "x \\neq 5", "x ≠ 5|x != 5|x \\ne 5", "x = 5|x > 5|x \\neq 6"),
    ("math", "[0, 1)", "[0,1)|$[0,1)$|\\left[0,1\\right)|0 \\leq x < 1", "(0,1)|[0,1]|[0,2)"),
    ("math", "(3, -1)", "(3,-1)|(x, y) = (3, -1)|x = 3, y = -1|\\left(3,-1\\right)", "(-1, 3)|(3, 1)|x = -1, y = 3"),
    ("math", "\\pm 3", "x = 3 \\text{ or } x = -3|3, -3|\\{-3, 3\\}|±3|x=3, x=-3", "3|-3|\\pm 2|3, 3"),
    ("math", "\\{1, 2, 3\\}", "1, 2, 3|\\{3,2,1\\}|1, 2 and 3|1,2,\\text{ and }3", "1, 2|1, 2, 4|\\{1, 2, 3, 4\\}"),
    ("math", "3+4i", "4i+3|3 + 4i|4 i + 3|3.0 + 4.0i", "3-4i|4+3i|7"),
    ("math", "2:3", "4:6|2 : 3|\\frac{2}{3}|6:9", "3:2|2:4|2:3:4"),
    ("math", "1:4:9", "2:8:18|1 : 4 : 9", "1:2:3|1:4:8"),
    ("math", "3:30", "3:30 PM|3:30|03:30|3:30 p.m.", "3:31|4:30|13:30"),
    ("math", "1 - \\frac{1}{e}", "1-1/e|1 - e^{-1}|1-\\frac{1}{\\mathrm{e}}|\\frac{e-1}{e}", "1 + \\frac{1}{e}|1|\\frac{1}{e}"),
    ("math", "6.6 \\times 10^{-34}", "6.6e-34|6.6×10⁻³⁴|6.60 \\times 10^{-34}", "6.7 \\times 10^{-34}|6.6e-33|0"),
    ("math", "0.0000001", "1e-7|10^{-7}|1 \\times 10^{-7}", "0.0000002|1e-8|0"),
    ("math", "\\frac{1}{2004!}", "1/2004!|\\dfrac{1}{2004!}", "\\frac{1}{2006!}|2004!"),
    ("math", "\\begin{pmatrix}1 & 2\\\\3 & 4\\end{pmatrix}", "[[1,2],[3,4]]|\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}", "[[1,2],[4,3]]|[[1,3],[2,4]]"),
    ("math", "3x + 4y + 14 = 0", "4y + 3x + 14 = 0|3x+4y=-14|6x+8y+28=0", "3x - y + 13 = 0|3x + 4y = 14"),
    ("math", "x^2+2x+1", "(x+1)^2|1+2x+x^2|x²+2x+1", "(x-1)^2|x^2+1|x^2+2x"),
    ("math", "28%", "28 percent|28\\%|28 percentage points|28", "82%|2.8"),
    ("math", "\\$32,\\!348", "32348|\\$32,348|32,348 dollars|$32,348", "32349|3234"),
    ("math", "Tuesday", "\\text{Tuesday}|tuesday|Tuesday.|**Tuesday**", "Monday|\\text{Thursday}"),
    ("math", "9 chickens and 10 rabbits", "9, 10|9 chickens and 10 rabbits", "9 chickens, 12 rabbits|9 chickens and 11 rabbits"),
    ("math", "0.\\overline{3}", "1/3|\\frac{1}{3}|0.\\overline{3}", "0.3|\\frac{1}{4}"),
    ("short", "Eiffel Tower", "the Eiffel Tower|eiffel tower.|**Eiffel Tower**|“Eiffel Tower”|Eiffel  Tower!", "Big Ben|Tower|Eiffel"),
    ("short", "2 dogs", "two dogs|2 Dogs.|Two dogs!", "3 dogs|two cats|dogs"),
    ("short", "St. Louis", "St. Louis|st. louis|St. Louis.", "St. Paul|Louis"),
    ("short", "café", "Café|cafe\u0301|“café”", "tea|coffee"),
    ("exact", "New York", "New York|new york|**New York**|'New York'|New  York.", "New Jersey|York|NewYork"),
    ("exact", "10 000", "10\u00a0000|10 000.", "10000|10 001"),
    ("exact", "4", "4|4.|$4$|\\text{4}|\\(4\\)|４", "5|4.0|four"),
    ("anls", "Williamsburg", "williamsburg|Wiliamsburg|**Williamsburg**|“Williamsburg”", "Wilmington|Hamburg"),
    ("anls", "Invoice 10045", "invoice 10045|Invoice 10045.|Invoice: 10045", "Invoice 10046|Invoice 1004"),
    ("anls", "12/05/1999", "12/05/1999|12/05/1999.", "12/05/1998|12/06/1999"),
    ("anls", "$1,234.00", "1,234.00|$1,234.00|\\$1,234.00", "$1,235.00|$234.00"),
    ("yes_no", "Yes", "yes|Yes.|YES|Yes, it is.|True|\\text{Yes}|**Yes**|是的|Ja.|Oui|Sí, lo es.|はい|Да", "no|No, it is not.|False|Nein|不是|Non"),
    ("yes_no", "No", "no|No.|No, there are fewer.|false|nein|不是|否", "yes|Yes, there are more.|True"),
    ("vqa", ["red"] * 6 + ["dark red"] * 3 + ["brown"], "red|Red.|dark red|the red", "brown|blue|green"),
    ("vqa", ["2"] * 9 + ["3"], "2|two|Two.", "3|four"),
    ("rounded", "11.50", "11.5|11.502|11.496 cm|23/2", "11.51|11.25|11"),
    ("rounded", "2.0944", "2.094|2.0944", "2.1|2.09"),
    ("rounded", "7", "7|7.0|seven", "7.2|8"),
    ("auto_rounded", "41.5", "41.5|41.52|83/2", "41.25|41"),
    ("auto_rounded", "C", "(C)|C.", "B|(A)"),
    ("auto_rounded", "\\frac{2}{3}", "2/3|4/6", "3/2"),
    ("auto", "12 cm", "0.12 m|12 cm|12", "13 cm|12 kg"),
    ("auto", "Paris", "paris|Paris.|“Paris”", "London|Rome"),
    ("auto", "\\frac{2}{3}", "2/3|4/6|\\dfrac{2}{3}", "3/2|0.6"),
    ("auto", "C", "(C)|C.|\\text{C}|c", "B|(A)"),
    ("auto", ["sofa", "couch"], "couch|A sofa.|Sofa", "chair|bed"),
]  # fmt: skip

_OPTIONS = [("light blue", COLORS), ("70°", ANGLES)]
SINGLE = [
    Row("choice: no answer", "choice", "B", ANGLES, text, U)
    for text in (
        "", "I do not know.", "I cannot determine the answer from the image.", "The answer is either A or B.",
        "The answer is B or C.", "Final answer: A, B", "Final answer: both A and B", "The answer is E.", "Beta",
        "The angle looks like 75 degrees.", "A good question, but there is no picture.", "I think so.",
        "<think>So it is B", "It is either A or B, I cannot say.", "Final answer: I am not sure", "B (80°)",
        "The answer is (B) 85°.", "A: 70°", "Final answer: B is wrong, so A",
    )
]  # fmt: skip
SINGLE += [
    Row("choice: options", "choice", "No", YES_NO, "No, the number of cars is not less than the number of bikes shown above.", C),
    Row("choice: options", "choice", "Yes", YES_NO, "No, it is not so. Yes is what one might think.", W),
    Row("choice: options", "choice", "No", YES_NO, "Yes and no, it depends on the picture.", U),
    Row("choice: options", "choice", "Yes", YES_NO, "A: No", U),
    Row("choice: options", "choice", "No", YES_NO, "A - No, the windows have no shape.", U),
    Row("choice: options", "choice", "18", ["9", "12", "18", "18"], "The answer is (C) 18.", C),
    Row("choice: options", "choice", "18", ["9", "12", "18", "18"], "D", C),
    Row("choice: options", "choice", "18", ["9", "12", "18", "18"], "B", W),
    Row("choice: options", "choice", "B", ["12", "12.5"], "The answer is 12.5", C),
    Row("choice: options", "choice", "A", ["12", "12.5"], "The answer is 12.5", W),
    Row("choice: options", "choice", "A", ["3/4", "3"], "The answer is 3/4.", C),
    Row("choice: options", "choice", "1", ["red", "blue"], "Final answer: (1)", C),
    Row("choice: options", "choice", "1", ["red", "blue"], "Option 2", W),
    Row("choice: options", "choice", "o'clock", ["half", "quarter", "o'clock"], "The answer is C (o’clock).", C),
    Row("choice: options", "choice", "A", ["94107", "94106"], "the answer is 94106 or 94107", U),
    Row("choice: options", "choice", "B", ["a metal rod", "a wooden rod"], "The correct answer is B. a wooden rod", C),
    Row("choice: options", "choice", "A", ["solid", "liquid"], "A liquid is not a solid.\nThe answer is A.", C),
    Row("choice: options", "choice", "D", ["x", "y", "z", "none of the above"], "The answer is none of the above.", C),
    Row("choice: several letters", "choice", "AC", None, "Final answer: A, C", C),
    Row("choice: several letters", "choice", "A,C", None, "AC", C),
    Row("choice: several letters", "choice", "AC", None, "Final answer: A and C", C),
    Row("choice: several letters", "choice", "AC", None, "Final answer: A", W),
    Row("choice: several letters", "choice", "AC", None, "Final answer: ACD", W),
    Row("choice: several letters", "choice", "A", None, "Final answer: A, B and C", U),
    Row("number: no answer", "number", "8", None, "There are three algorithms with accuracy lower than 8.", W),
    Row("number: no answer", "number", "3", None, "There are three algorithms with accuracy lower than 8.", C),
]  # fmt: skip
TRUE_FALSE, SEVERAL = ["True", "False"], ["A, R, N", "R, T, S"]
SINGLE += [
    Row("choice: options", "choice", answer, choices, response, verdict)
    for choices, response, right, wrong in (
        (YES_NO, "The answer is (B). No, the tower is lower than the hill.", "No", "Yes"),
        (YES_NO, "The answer is (B). No.", "No", "Yes"),
        (YES_NO, "We count both.\n\nOption B) No", "No", "Yes"),
        (TRUE_FALSE, "(B) False", "False", "True"),
        (TRUE_FALSE, "Option (B) False: the sum is odd.\n\nTherefore, the correct answer is (B) False.", "False", "True"),
        (COLORS, "The door beside the oak is dark green. It was painted last year.\nNobody knows by whom.", "dark green", "red"),
        (["increase", "decrease"], "If the foxes leave, the number of hares will increase.\nThey eat them.", "increase", "decrease"),
        (["increase", "decrease"], "If the foxes increase, the hares will most likely decrease.\nThey are eaten.", "decrease", "increase"),
        (["(c)", "(a)", "(b)"], "The answer is (B).", "(a)", "(b)"),
        (["(c)", "(a)", "(b)"], "The answer is (b).", "(b)", "(a)"),
        (["0.14", "0.5", "0.96"], "The correct answer is (C), 0.96.\n\nHere angle A is the right angle.", "0.96", "0.14"),
        (["5", "10", "5 \\sqrt { 3 }"], "The correct answer is (C) 5√3 inches.", "5 \\sqrt { 3 }", "5"),
        (SEVERAL, "Thus, the answer is B (R, T, S).", "R, T, S", "A, R, N"),
        (["A", "B", "C", "D"], "The missing part is (D) D.", "D", "A"),
        (["7.5", "8", "8.5", "17"], "Half of the width is meant. In this case, the radius is 8.5 inches.", "8.5", "8"),
        (["7.5", "8", "8.5"], "So it is $\\boxed{\\textbf{(C) }8.5}$ inches.", "8.5", "8"),
        (["2", "6", "6 \\sqrt { 5 }"], "The correct option is (C) 6 √5.", "6 \\sqrt { 5 }", "6"),
        (["red", "blue"], "If the fish leave, the reed would be blue. (B)", "blue", "red"),
        (["red", "blue"], "\u200bB) blue", "blue", "red"),
        (["red", "blue"], "The answer is B. BECAUSE: we look at the sign.\nIf it shines, select option A.\nIf not, select option B.", "blue", "red"),
    )
    for answer, verdict in ((right, C), (wrong, W))
]  # fmt: skip
SINGLE += [
    Row("choice: no answer", "choice", answer, choices, response, U)
    for choices, answer, response in (
        (YES_NO, "Yes", "The answer is (A). No."),
        (YES_NO, "No", "We see two bars.\nTherefore, there is no gap between them."),
        (["Jar A", "Jar B"], "Jar A", "Nothing is marked.\nTherefore, it is impossible to say which jar has a higher level."),
        (ANGLES, "B", "Choose the correct letter:\n(A) 60°\n(B) 70°\n(C) 80°\n(D) 85°"),
        (ANGLES, "D", "Please pick one letter.\n\n(A) 60°\n(B) 70°\n(C) 80°\n(D) 85°"),
        (ANGLES, "B", "The correct answer is **(B)**.\n\nWe measure, and x is \\boxed{80} degrees."),
        (ANGLES, "B", "The answer is (B).\n\nQuestion: Which is larger?\nSolution: The answer is (D)."),
        (ANGLES, "B", "The angle is not (B)."),
        (["Sun", "Moon"], "Sun", "Both are round.\nThe Sun is larger than the Moon."),
        (["8", "8.5"], "8", "The answer is (A) 8.5"),
        (["red", "blue"], "red", "The answer is B. BECAUSE: we look at the sign.\nIt shines.\nSelect option A."),
    )
]  # fmt: skip
SINGLE += [
    Row("number: no answer", "number", "5", None, text, U)
    for text in (
        "The voltage is 3 V and the current is 5 A.", "The components are:\nx = 3\ny = 5", "The ratio is 1:5.",
        "**3** boys and **5** girls came.\nThey sat down.", "It was highest in 2016, with 5% of the votes.",
        "The total is 5.\n\nQuestion: How many are left?\nSolution: 9 are left over.", "1. Apples: 3\n2. Pears: 5",
    )
]  # fmt: skip
SINGLE += [
    Row("number: no answer", "number", "5", None, text, U)
    for text in (
        "Final answer: not 5", "Final answer: less than 5", "at least 5", "more than 5", "5!", "between 4 and 6", "4-6",
        "5 or 6", "Final answer: 5x", "5π", "5^2", "It cannot be determined.", "many", "", "<think>It is 5", "5/0",
        "Final answer: 5\n\nFinal answer: 6", "<answer>5</answer> <answer>6</answer>",
    )
]  # fmt: skip
SINGLE += [
    Row("math: not all read", "math", "5", None, text, U)
    for text in (
        "I think it is 5",
        r"\boxed{5",
        r"\boxed{)(}",
        "",
        r"\boxed{1,2,\dots,5}",
        "<think>5",
        "Final answer: five or so, as it seems",
    )
]
SINGLE += [
    Row("math: several boxes", "math", "1, 2, 3", None, r"\boxed{1}, \boxed{2} and \boxed{3}", C),
    Row("math: several boxes", "math", "3", None, r"\boxed{1}, \boxed{2} and \boxed{3}", W),
    Row("math: several boxes", "math", "7", None, r"First \boxed{3}, later \boxed{7}.", C),
    Row("math: several boxes", "math", "3", None, r"First \boxed{3}, later \boxed{7}.", W),
    Row("math: first sentence", "math", "10", None, "There are 10 objects in the image. Here is why:\n\n1. **Cubes (4):** four.", C),
    Row("math: first sentence", "math", "9", None, "There are 10 objects in the image. Here is why:\n\n1. **Cubes (4):** four.", W),
    Row("relaxed: no answer", "relaxed", "5", None, "The bars are of many sizes.\nI am not sure.", U),
    Row("relaxed: no answer", "relaxed", "5", None, "a lot", U),
    Row("anls: no answer", "anls", "Paris", None, "First line\nsecond line", U),
    Row("yes_no: no answer", "yes_no", "No", None, "Nobody is there.", U),
    Row("yes_no: no answer", "yes_no", "No", None, "I don't know.", U),
    Row("yes_no: no answer", "yes_no", "Yes", None, "Yes and no.", U),
]  # fmt: skip


def _lines(table: str) -> list[str]:
    return [line.strip().replace("\\n", "\n").replace("\\\\", "\\") for line in table.strip().splitlines()]


def rows() -> Iterator[Row]:
    """All of them; no two are alike."""
    for kind, table in LETTER_PHRASES.items():
        for phrase in _lines(table):
            yield Row(kind, "choice", "B", ANGLES, phrase.format("B"), C)
            yield Row(kind, "choice", "B", None, phrase.format("C"), W)
    for phrase in _lines(LETTER_WITH_TEXT):
        yield Row("letter with text", "choice", "B", COLORS, phrase.format("B", t="light blue"), C)
        yield Row("letter with text", "choice", "70°", ANGLES, phrase.format("C", t="80°"), W)
        yield Row("letter with text", "choice", "B", COLORS, phrase.format("B", t="dark green"), U)
    for phrase in _lines(OPTION_TEXT):
        for right, options in _OPTIONS:
            yield Row("option text", "choice", right, options, phrase.format(t=right), C)
            yield Row("option text", "choice", right, options, phrase.format(t=options[2]), W)
    for kind, table in NUMBER_PHRASES.items():
        for place, phrase in enumerate(_lines(table)):
            verifier = NUMBER_VERIFIERS[place % len(NUMBER_VERIFIERS)]
            yield Row(kind, verifier, "17", None, phrase.format("17"), C)
            yield Row(kind, verifier, "17", None, phrase.format("29"), W)
    for phrase in _lines(IN_SENTENCES_ONLY):
        yield Row("number: one in a sentence", "number", "17", None, phrase.format("17"), C)
        yield Row("number: one in a sentence", "number", "17", None, phrase.format("29"), W)
    for verifier, reference, right, wrong in SAME_NUMBER:
        for texts, verdict in ((right, C), (wrong, W)):
            for place, text in enumerate(texts.split("|")):
                response = (f"Final answer: {text}", f"We see it.\n\nAnswer: {text}", f"<answer>{text}</answer>")[
                    place % 3
                ]
                yield Row(f"{verifier}: the value in another dress", verifier, reference, None, response, verdict)
    yield from SINGLE
